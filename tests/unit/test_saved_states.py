"""Which parts of a volume changed since an earlier backup: real qcow2 layers, read over NBD as a backup reads them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from casemate.backup.incremental.layer import CLUSTER, changed_runs, full_runs
from casemate.backup.incremental.nbd import NbdClient, NbdError
from casemate.model.volumes import Volume
from casemate.storage.drivers.qcow2 import Qcow2Pool
from casemate.storage.nbd_export import EXPORT
from casemate.wire.errors import StorageError
from tests.unit.test_qcow2_pool import place, pool, work_private  # noqa: F401  # place and pool are fixtures
from tests.unit.test_qcow2_revisions import kept, run_once


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **words: Any) -> None:
        asyncio.run(test(*args, **words))

    return run


async def state(pool: Qcow2Pool, volume: Volume, place: Path, since: tuple[str, ...] = ()) -> tuple[str, ...]:  # noqa: F811
    async with pool.serve(volume, place / "socket", since) as served:
        assert served.size == volume.size
        return served.layers


async def changed(pool: Qcow2Pool, volume: Volume, place: Path, since: tuple[str, ...]) -> set[int] | None:  # noqa: F811
    """The clusters that a backup would read; None: all that have data."""
    async with pool.serve(volume, place / "socket", since) as served:
        if served.changed == 0:
            return set()
        client = NbdClient(place / "socket", EXPORT)
        try:
            assert full_runs(client.extents(), client.size)
            if served.changed is None:
                return None
            runs = changed_runs(client.extents(), client.size, served.changed, [])
        finally:
            client.close()
        return {cluster for run in runs for cluster in range(run.first, run.end)}


@pytest.mark.parametrize("count", [1, 2, 3])
@in_a_loop
async def test_only_what_runs_have_written_is_read(pool: Qcow2Pool, place: Path, count: int) -> None:  # noqa: F811
    volume = kept(work_private, count)
    await pool.create(volume)
    states, written = [await state(pool, volume, place)], []
    for number in range(6):  # older states are merged meanwhile, also below what was backed up
        await run_once(pool, volume, 0x20 + number, f"{8 + number}M")
        written.append((8 + number << 20) // CLUSTER)
        for runs in range(1, min(count, len(states)) + 1):
            assert await changed(pool, volume, place, states[-runs]) == set(written[-runs:])
        if len(states) > count:  # that state is gone: what it had was merged with what came after it
            assert await changed(pool, volume, place, states[-count - 1]) is None
        states.append(await state(pool, volume, place))
    last = await state(pool, volume, place)
    assert await changed(pool, volume, place, last) == set()
    await pool.revert(volume, pool.revisions(volume)[-1])
    assert await changed(pool, volume, place, last) is None
    assert await changed(pool, volume, place, ("1-2-3",)) is None


@in_a_loop
async def test_a_volume_that_was_enlarged_is_read_in_full(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    volume = kept(work_private, 1)
    await pool.create(volume)
    before = await state(pool, volume, place)
    await pool.resize(volume, 2 * volume.size)
    async with pool.serve(volume, place / "socket", before) as served:
        assert served.changed is None and served.size == 2 * volume.size


@in_a_loop
async def test_without_older_states_a_run_changes_all(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    volume = kept(work_private, 0)
    await pool.create(volume)
    before = await state(pool, volume, place)
    await run_once(pool, volume, 0x33)
    assert await changed(pool, volume, place, before) is None


@in_a_loop
async def test_the_socket_goes_with_the_server(pool: Qcow2Pool, place: Path) -> None:  # noqa: F811
    await pool.create(work_private)
    async with pool.serve(work_private, place / "socket") as served:
        assert served.changed is None
        assert (place / "socket").stat().st_mode & 0o777 == 0o600
    assert not (place / "socket").exists()
    with pytest.raises(NbdError):
        NbdClient(place / "socket", EXPORT)
    await pool.remove(work_private)
    with pytest.raises(StorageError, match="is missing"):
        async with pool.serve(work_private, place / "socket"):
            pass
    assert not list((place).rglob("*.same"))
