"""Older states of volumes in the qcow2 pool, as layers; and a process killed at each step."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from casemate.host.process import Runner
from casemate.model.volumes import Volume
from casemate.storage.driver import Opening
from casemate.storage.drivers.qcow2 import Qcow2Pool
from casemate.storage.pool import Image
from casemate.storage.qcow2_header import check_file
from casemate.wire.errors import (
    RevisionNotFoundError,
    StorageError,
)
from tests.unit.test_qcow2_pool import (  # noqa: F401  # place and pool are fixtures
    GROUP,
    MIB,
    TEMPLATE,
    WORK,
    files,
    holds,
    imported,
    place,
    pool,
    template_root,
    work_private,
    work_root,
    write,
)

FULL = os.environ.get("CASEMATE_FULL", "") not in ("", "0")


def kept(volume: Volume, count: int) -> Volume:
    return replace(volume, revisions_to_keep=count)


async def run_once(pool: Qcow2Pool, volume: Volume, byte: int, at: str = "8M", shared: bool = False) -> None:  # noqa: F811
    """A start, something written, a stop."""
    image = await pool.start(volume, WORK, shared)
    await io_through(image, byte, at)
    await pool.stop(volume)


async def io_through(image: Image, byte: int, at: str) -> None:
    if image.own_layers and WORK is not None:
        for path, _format in image.backing:
            path.chmod(0o400)  # as host.qemu_access does
    await write(image, byte, WORK, at)


def test_each_run_leaves_the_state_before_it(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    volume = kept(work_private, 2)

    async def scenario() -> None:
        await pool.create(volume)
        assert pool.revisions(volume) == []
        for byte in (1, 2, 3, 4):
            await run_once(pool, volume, byte)
        one, two = pool.revisions(volume)
        assert one < two and await holds(pool.path(volume), 4, "8M")
        for name, byte in ((one, 2), (two, 3)):
            assert await holds(pool.path(volume).with_name(f"private@{name}.qcow2"), byte, "8M")
        assert files(place) == {f"work/private{name}.qcow2" for name in ("", f"@{one}", f"@{two}")}
        # Going back keeps what was, so that it can be undone.
        await pool.revert(volume, one)
        assert await holds(pool.path(volume), 2, "8M")
        last = pool.revisions(volume)[-1]
        assert len(pool.revisions(volume)) == 2 and last > two
        await pool.revert(volume, last)
        assert await holds(pool.path(volume), 4, "8M")
        for wrong in ("20200101-000000", "../x", "", "x" * 300):
            with pytest.raises(RevisionNotFoundError):
                await pool.revert(volume, wrong)
        # Fewer to keep: they go at the next stop; none: one plain file again, with all that was written.
        await run_once(pool, kept(volume, 0), 5, "4M")
        assert files(place) == {"work/private.qcow2"} and pool.revisions(volume) == []
        assert await holds(pool.path(volume), 5, "4M") and await holds(pool.path(volume), 4, "8M")
        check_file(pool.path(volume), None)

    asyncio.run(scenario())


def test_a_run_that_writes_nothing_leaves_no_state(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    volume = kept(work_private, 1)

    async def scenario() -> None:
        await pool.create(volume)
        await run_once(pool, volume, 1)
        before = pool.revisions(volume)
        for _ in range(3):
            await pool.start(volume, WORK, False)
            await pool.stop(volume)
        assert pool.revisions(volume) == before and await holds(pool.path(volume), 1, "8M")

    asyncio.run(scenario())


def test_what_replaces_a_volume_leaves_its_old_state(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    volume = kept(work_private, 1)

    async def scenario() -> None:
        await pool.create(volume)
        await run_once(pool, volume, 1)
        await pool.create(volume)
        assert not await holds(pool.path(volume), 1, "8M")
        await pool.revert(volume, pool.revisions(volume)[-1])
        assert await holds(pool.path(volume), 1, "8M")
        other = replace(volume, vid="other/private")
        await pool.clone(volume, other)
        assert await holds(pool.path(other), 1, "8M") and pool.revisions(other) == []
        await run_once(pool, volume, 2)
        await pool.resize(volume, 32 * MIB)
        await run_once(pool, replace(volume, size=32 * MIB), 3, "24M")
        assert await holds(pool.path(volume), 2, "8M") and await holds(pool.path(volume), 3, "24M")
        await pool.remove(volume)
        await pool.remove(other)
        assert files(place) == set()

    asyncio.run(scenario())


def test_a_template_keeps_states_and_its_readers_what_they_started_with(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    root = kept(template_root, 1)

    async def scenario() -> None:
        await imported(pool, place)
        early = await pool.start(work_root, WORK, False)
        assert not pool.is_outdated(work_root)
        for byte in (0x21, 0x22):
            image = await pool.start(root, TEMPLATE, True)
            await write(image, byte, TEMPLATE)
            await pool.stop(root)
        assert pool.is_outdated(work_root) and await holds(early.path, 0x11)
        (name,) = pool.revisions(root)
        assert await holds(pool.path(root), 0x22)
        await pool.revert(root, name)
        assert await holds(pool.path(root), 0x21) and await holds(early.path, 0x11)
        await pool.stop(work_root)
        late = await pool.start(work_root, WORK, False)
        assert await holds(late.path, 0x21) and not pool.is_outdated(work_root)

    asyncio.run(scenario())


def test_others_can_be_based_on_a_volume_with_layers(pool: Qcow2Pool) -> None:  # noqa: F811
    volume = kept(work_private, 2)
    based = replace(work_root, name="private", vid="disp/private", source=volume.vid)

    async def scenario() -> None:
        await pool.create(volume)
        for byte in (1, 2):
            await run_once(pool, volume, byte)
        image = await pool.start(based, WORK, False)
        assert len(image.backing) == 1 and not image.own_layers and await holds(image.path, 2, "8M")
        await run_once(pool, volume, 3, shared=True)
        assert await holds(image.path, 2, "8M") and await holds(pool.path(volume), 3, "8M")
        assert len(pool.revisions(volume)) == 2

    asyncio.run(scenario())


def test_a_layer_that_names_a_file_of_the_host_is_not_followed(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    volume = kept(work_private, 1)

    async def scenario() -> None:
        await pool.create(volume)
        await run_once(pool, volume, 1)
        path = pool.path(volume)
        (name,) = pool.revisions(volume)
        old = bytes(path.with_name(f"private@{name}.qcow2"))
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, b"/etc/shadow".ljust(len(old), b"x")))
        for work in (
            pool.start(volume, WORK, False), pool.resize(volume, 32 * MIB), pool.verify(volume),
            pool.clone(volume, replace(volume, vid="other/private")),
        ):  # fmt: skip
            with pytest.raises(StorageError, match="not as we made it"):
                await work

    asyncio.run(scenario())


@pytest.mark.parametrize("shared", [False, True])
def test_killed_at_any_step_the_volume_is_usable_and_whole(place: Path, shared: bool) -> None:  # noqa: F811
    """Each step that changes a name or runs a tool is the last one of a process, once."""
    volume = kept(work_private, 1)

    def opened() -> Qcow2Pool:
        return Qcow2Pool(Opening({}, place, Runner(), GROUP))

    async def prepare() -> None:
        await opened().remove(volume)
        await opened().create(volume)
        for byte in (1, 2):
            await run_once(opened(), volume, byte, shared=shared)

    async def begin() -> None:
        await opened().start(volume, WORK, shared)

    async def end() -> None:
        await opened().stop(volume)

    async def back() -> None:
        await opened().revert(volume, opened().revisions(volume)[-1])

    async def written() -> None:
        """As a machine leaves it."""
        await prepare()
        await io_through(await opened().start(volume, WORK, shared), 3, "4M")

    async def check(expected: tuple[int, ...], third: bool) -> None:
        again = opened()
        await again.stop(volume)
        path = again.path(volume)
        assert [byte for byte in (1, 2) if await holds(path, byte, "8M")][0] in expected
        assert not third or await holds(path, 3, "4M")
        assert len(again.revisions(volume)) <= 1
        await run_once(again, volume, 7, "2M", shared)
        assert await holds(path, 7, "2M")
        assert not list(place.rglob("*.gone")) and len(again.revisions(volume)) == 1

    for before, work, expected, third in (
        (prepare, begin, (2,), False), (written, end, (2,), True), (prepare, back, (1, 2), False),
    ):  # fmt: skip
        # All steps from the first to the one that is not reached any more; in a usual run each third of them.
        step = 0 if FULL else date.today().toordinal() % 3
        while True:
            step += 1 if FULL else 3
            asyncio.run(before())
            pid = os.fork()
            if pid == 0:
                die_at(step)
                asyncio.run(work())
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status in (0, 9)
            asyncio.run(check(expected, third))
            if status == 0:
                break
        assert step > 3, work


def die_at(step: int) -> None:
    """End this process before the step-th thing that it does to files."""
    left = step

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return function(*args, **kwargs)

        return stepping

    os.link = wrap(os.link)
    Runner.run = wrap(Runner.run)  # type: ignore[method-assign]
    for name in ("rename", "replace", "unlink", "touch"):
        setattr(Path, name, wrap(getattr(Path, name)))
