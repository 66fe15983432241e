"""What is kept of a snapshot, and what a daemon finds that was killed meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.engine.fork_settings import ForkSettings
from casemate.engine.snapshots import Snapshots
from casemate.engine.warm_image import WarmImage
from casemate.engine.warm_images import WarmImages
from casemate.host.files import remove_tree
from casemate.settings import Settings
from casemate.store.store import Store
from casemate.wire.errors import CasemateError, HypervisorError, QubeError, ValueInvalidError
from casemate.wire.firewall import parse_rules
from tests.builders import settings_in, small_system, within

KEY = "0123456789abcdef"
"""Begins with a zero: in the names of a pool's directories it is a number."""


class Place:
    """A state, and what stands for machines, forks and pools: files and what was asked of them."""

    def __init__(self, directory: Path) -> None:
        self.settings: Settings = settings_in(directory)
        self.asked: list[str] = []
        self.layers: set[str] = set()
        self.error: CasemateError | None = None
        self.going_on = asyncio.Event()
        self.going_on.set()
        domain = small_system().domains["work"]
        domain.tags.add("mine")
        domain.features["service.x"] = "1"
        self.taken = ForkSettings.of(domain, "base", parse_rules("action=accept dst4=192.0.2.0/24\naction=drop\n"))

    def part(self) -> Snapshots:
        """That of a daemon which has just been started."""
        return Snapshots(self.settings, self, self, self)  # type: ignore[arg-type]

    # -- forks

    async def copy(self, qube: str) -> tuple[WarmImage, ForkSettings]:
        directory = self.settings.state / "warm" / f".fork-{KEY}"
        directory.mkdir(parents=True)
        (directory / "devices").write_bytes(b"devices")
        self.layers.add(KEY)
        return WarmImage(KEY, directory, qube, ("default",), 1.0, 1.0, 0, is_fork=True), self.taken

    async def start(self, copy: WarmImage, settings: ForkSettings, count: int, creator: str) -> list[str]:
        assert settings == self.taken and copy.is_fork and (copy.directory / "memory").read_bytes() == b"memory"
        self.asked.append(f"start {count} for {creator}")
        await self.going_on.wait()
        assert copy.directory.exists(), "it was dropped meanwhile"
        return [f"disp{number}" for number in range(count)]

    async def drop(self, copy: WarmImage) -> None:
        self.layers.discard(copy.key)
        remove_tree(copy.directory)

    # -- machines

    async def keep_fork(self, directory: Path) -> None:
        if self.error is not None:
            raise self.error
        (directory / "memory").write_bytes(b"memory")

    async def release_image(self, directory: Path) -> None:
        self.asked.append(f"release {directory.name}")

    # -- pools

    def named(self, _pool: str) -> Any:
        async def settle(_key: str) -> None: ...

        async def drop(key: str) -> None:
            self.layers = {one for one in self.layers if int(one, 16) != int(key, 16)}

        return SimpleNamespace(
            settle_image=settle, drop_image=drop, images=lambda: [f"{int(x, 16):x}" for x in self.layers]
        )


def run(directory: Path, work: Callable[[Place], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        await work(Place(directory))

    asyncio.run(within(60, body()))


def test_the_next_daemon_finds_it_with_all_its_settings(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        await place.part().take("work", "ready")
        later = place.part()
        assert later.open() == {KEY}
        (found,) = later.list()
        assert (found.name, found.qube, found.base, found.settings) == ("ready", "work", "base", place.taken)
        assert not list((place.settings.state / "warm").iterdir())
        assert await later.resume("ready", 2, "vault") == ["disp0", "disp1"]
        assert place.asked[-2:] == ["start 2 for vault", f"release {KEY}"]

    run(tmp_path, work)


def test_its_disks_are_not_taken_for_what_a_killed_daemon_left(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        await place.part().take("work", "ready")
        place.layers.add("fedcba9876543210")
        store = Store(place.settings.store_file)
        images = WarmImages(place.settings, store, place, place, SimpleNamespace(), lambda _domain: frozenset())  # type: ignore[arg-type]
        await images.open(place.part().open())
        assert {int(key, 16) for key in place.layers} == {int(KEY, 16)}
        await images.open()
        assert not place.layers, "this tested nothing: an unknown layer stays"
        store.close()

    run(tmp_path, work)


@pytest.mark.parametrize("name", ["", ".", "..", "-n", "a/b", "x" * 64, "a b", "ä", "a\n"])
def test_a_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    async def work(place: Place) -> None:
        with pytest.raises(ValueInvalidError, match="is no name of a snapshot"):
            await place.part().take("work", name)
        assert not place.layers

    run(tmp_path, work)


def test_a_name_is_given_once_and_free_again_when_it_is_dropped(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        part = place.part()
        first = asyncio.create_task(part.take("work", "ready"))
        with pytest.raises(QubeError, match="There is a snapshot ready already, of work"):
            await asyncio.gather(part.take("vault", "ready"), first)
        await part.drop("ready")
        assert not place.layers and not part.list() and not part.open()
        for wrong in (part.drop("ready"), part.resume("ready")):
            with pytest.raises(ValueInvalidError, match="There is no snapshot 'ready'"):
                await wrong
        await part.take("work", "ready")

    run(tmp_path, work)


@pytest.mark.parametrize("count", [0, 65])
def test_how_many_can_go_on_at_once(tmp_path: Path, count: int) -> None:
    async def work(place: Place) -> None:
        part = place.part()
        await part.take("work", "ready")
        with pytest.raises(QubeError, match="1 to 64"):
            await part.resume("ready", count)

    run(tmp_path, work)


def test_what_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        part = place.part()
        place.error = HypervisorError("No room")
        with pytest.raises(HypervisorError, match="No room"):
            await part.take("work", "ready")
        assert not place.layers and not part.list() and not part.open()
        assert not list((place.settings.state / "warm").iterdir())
        place.error = None
        await part.take("work", "ready")

    run(tmp_path, work)


def test_it_is_not_dropped_while_something_goes_on_from_it(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        part = place.part()
        await part.take("work", "ready")
        place.going_on.clear()
        resuming = asyncio.create_task(part.resume("ready"))
        while not any(asked.startswith("start") for asked in place.asked):
            await asyncio.sleep(0)
        dropping = asyncio.create_task(part.drop("ready"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not dropping.done()
        place.going_on.set()
        assert await resuming == ["disp0"]
        await dropping
        assert not place.layers

    run(tmp_path, work)


def test_one_that_cannot_be_read_keeps_its_files(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        taken = await place.part().take("work", "ready")
        about = taken.directory / "snapshot.json"
        whole = about.read_bytes()
        data = json.loads(whole)
        for damaged in (b"", b"{}", b"[]", json.dumps(data | {"settings": {}}).encode(), whole[: len(whole) // 2]):
            about.write_bytes(damaged)
            part = place.part()
            assert part.open() == {KEY} and not part.list()
        about.write_bytes(whole)
        part = place.part()
        part.open()
        assert [one.name for one in part.list()] == ["ready"]

    run(tmp_path, work)


def test_what_a_killed_daemon_began_to_drop_goes(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        taken = await place.part().take("work", "ready")
        taken.directory.rename(taken.directory.with_name(f".gone-{KEY}"))
        assert not place.part().open()
        assert not list((place.settings.state / "snapshots").iterdir())

    run(tmp_path, work)
