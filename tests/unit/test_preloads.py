"""Disposables that are started before they are asked for: how many wait, who gets one, and which are of no use.

One file although it is long: all tests use one place with one part and its guests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from casemate.engine import preloads as module
from casemate.engine.preloads import Preloads
from casemate.model import preloading
from casemate.store.store import Store
from casemate.wire.errors import DisconnectedError, QubeError
from tests.builders import uuid
from tests.fakes.parts import FakeParts

SECONDS = 30.0


class Settling:
    """Guests that come to rest when they may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.fails = False

    async def settle(self, name: str) -> None:
        await self.may.wait()
        if self.fails:
            raise DisconnectedError(f"{name} has gone")


class Place:
    """A store with a disposable template, and the part under test over fake machines."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "qubes.xml")
        self.parts = FakeParts(self.store)
        self.guests = Settling()
        with self.store.write() as transaction:
            system = transaction.system
            system.add("TemplateVM", "deb", uuid=uuid(1))
            system.add("AppVM", "dvm", uuid=uuid(2), template="deb")
            system.domains["dvm"].template_for_dispvms = True
            system.domains["dvm"].features["preload-dispvm-delay"] = "0"
        self.part: Preloads

    def feature(self, qube: str, name: str, value: str | None) -> None:
        with self.store.write() as transaction:
            features = transaction.system.domains[qube].features
            if value is None:
                features.remove(name)
            else:
                features.set(name, value)

    def waiting(self) -> list[str]:
        """Disposables of the template that stand still, ready to be used."""
        domains = self.store.snapshot().domains
        return [
            name
            for name in preloading.listed(domains["dvm"])
            if self.state(name) == "Paused" and domains[name].features.get(preloading.COMPLETED)
        ]

    def state(self, name: str) -> str:
        return self.parts.machines[name].state if name in self.parts.machines else "Halted"

    def disposables(self) -> list[str]:
        return [one.name for one in self.store.snapshot().domains.values() if one.klass == "DispVM"]

    async def begun(self) -> str:
        """The disposable that is being started, once its machine runs; see ``Settling.may``."""
        self.feature("dvm", "preload-dispvm-max", "1")
        await until(lambda: any(self.state(name) == "Running" for name in self.disposables()))
        (name,) = self.disposables()
        return name

    async def waits(self, count: int) -> list[str]:
        await until(lambda: len(self.waiting()) == count and len(self.disposables()) >= count)
        return self.waiting()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def working(place: Place) -> AsyncIterator[Preloads]:
    place.part = place.parts.preloads(place.guests)
    await place.part.start()
    try:
        yield place.part
    finally:
        await place.part.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    monkeypatch.setattr(module, "GAP_SECONDS", 0.0)

    def run(body: Callable[[Place], Awaitable[None]]) -> None:
        async def main() -> None:
            await body(Place(tmp_path))

        asyncio.run(main())

    return run


Run = Callable[[Callable[[Place], Awaitable[None]]], None]


def test_as_many_wait_as_are_wanted(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place):
            place.feature("dvm", "preload-dispvm-max", "2")
            two = await place.waits(2)
            domain = place.store.snapshot().domains[two[0]]
            assert domain.is_preload and domain.features["internal"] == "1" and domain.text("is_preload") == "True"
            assert preloading.IN_PROGRESS not in domain.features
            place.feature("dvm", "preload-dispvm-max", "1")
            await until(lambda: place.disposables() == two[:1])
            place.feature("dvm", "preload-dispvm-max", None)
            await until(lambda: place.disposables() == [])
            assert preloading.PRELOADED not in place.store.snapshot().domains["dvm"].features

    run(body)


def test_the_feature_of_dom0_decides_for_the_default_template(run: Run) -> None:
    async def body(place: Place) -> None:
        def default(name: str | None) -> None:
            with place.store.write() as transaction:
                transaction.system.set_text("default_dispvm", name or "")

        async with working(place):
            default("dvm")
            place.feature("dvm", "preload-dispvm-max", "3")
            place.feature("dom0", "preload-dispvm-max", "1")
            await until(lambda: len(place.disposables()) == len(place.waiting()) == 1)
            default(None)
            await place.waits(3)

    run(body)


def test_one_that_waits_is_given_away_and_replaced(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place) as part:
            place.feature("dvm", "preload-dispvm-max", "1")
            (name,) = await place.waits(1)
            assert await part.create("dvm", "work") == name
            domain = place.store.snapshot().domains[name]
            assert place.state(name) == "Running" and not domain.is_preload
            assert set(domain.tags) == {"created-by-work"} and dict(domain.features) == {}
            (other,) = await place.waits(1)
            assert other != name

    run(body)


def test_two_who_ask_at_once_get_two(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place) as part:
            place.feature("dvm", "preload-dispvm-max", "2")
            two = await place.waits(2)
            got = await asyncio.gather(*(part.create("dvm") for _ in range(5)))
            assert len(set(got)) == 5 and set(two) < set(got)
            await place.waits(2)  # and whatever was begun meanwhile has ended
            for name in got:
                assert not place.store.snapshot().domains[name].is_preload
            assert all(place.state(name) == "Running" for name in two)

    run(body)


def test_who_asks_during_a_start_gets_what_is_started(run: Run) -> None:
    async def body(place: Place) -> None:
        place.guests.may.clear()
        async with working(place) as part:
            name = await place.begun()
            asked = asyncio.create_task(part.create("dvm"))
            await asyncio.sleep(0)
            place.guests.may.set()
            assert await asked == name and place.state(name) == "Running"
            assert preloading.IN_PROGRESS not in place.store.snapshot().domains[name].features

    run(body)


def test_a_start_that_fails_leaves_nothing_and_is_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)

    async def body(place: Place) -> None:
        place.guests.fails = True
        place.guests.may.clear()
        async with working(place) as part:
            place.feature("dvm", "preload-dispvm-max", "1")
            await until(place.disposables)
            asked = asyncio.create_task(part.create("dvm"))
            await asyncio.sleep(0)
            place.guests.may.set()
            fresh = await asked  # a new one of his own
            assert place.state(fresh) == "Halted"
            place.guests.fails = False
            (name,) = await place.waits(1)
            await until(lambda: sorted(place.disposables()) == sorted([fresh, name]))

    run(body)


@pytest.mark.parametrize(
    "change",
    [
        lambda place, name: place.feature("dvm", "service.cups", "1"),
        lambda place, name: place.feature("deb", "init", "systemd"),
        lambda place, name: place.parts.volumes.outdated.add((name, "root")),
        lambda place, name: place.parts.volumes.outdated.add((name, "private")),
        lambda place, name: _set(place, "dvm", "memory", "500"),
        lambda place, name: _set(place, "dvm", "default_user", "root"),
    ],
)
def test_an_outdated_one_is_neither_given_away_nor_kept(run: Run, change: Callable[[Place, str], None]) -> None:
    async def body(place: Place) -> None:
        place.feature("dvm", "preload-dispvm-max", "1")
        async with working(place):
            (name,) = await place.waits(1)
        part = place.parts.preloads(place.guests)  # nothing looks after it meanwhile
        change(place, name)
        got = await part.create("dvm")
        assert got != name and place.state(got) == "Halted"
        await part.start()
        try:
            await until(lambda: name not in place.disposables())
            await place.waits(1)
        finally:
            await part.close()

    run(body)


def test_one_whose_template_changes_while_it_starts_is_not_given_away(run: Run) -> None:
    async def body(place: Place) -> None:
        place.guests.may.clear()
        async with working(place) as part:
            name = await place.begun()
            asked = asyncio.create_task(part.create("dvm"))
            await asyncio.sleep(0)
            place.parts.volumes.outdated.add((name, "private"))
            place.guests.may.set()
            got = await asked
            assert got != name and place.state(got) == "Halted"
            await until(lambda: name not in place.disposables())

    run(body)


def _set(place: Place, qube: str, name: str, text: str) -> None:
    with place.store.write() as transaction:
        transaction.system.domains[qube].set_text(name, text)


def test_the_next_daemon_finds_them_and_removes_what_is_half_done(run: Run) -> None:
    async def body(place: Place) -> None:
        place.feature("dvm", "preload-dispvm-max", "2")
        async with working(place):
            kept, given = await place.waits(2)
        # A daemon that was killed between its unpause and its answer; one that was killed in a start; somebody's.
        await place.parts.power.unpause(given)
        half = await place.parts.disposables.create("dvm", features={preloading.IN_PROGRESS: "1"})
        used = await place.parts.disposables.create("dvm")
        await place.parts.power.start(used)
        async with working(place):
            await until(lambda: kept in place.waiting() and not {given, half} & set(place.disposables()))
            assert place.state(used) == "Running"
            await place.waits(2)

    run(body)


def test_an_unpause_by_somebody_is_a_use(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place):
            place.feature("dvm", "preload-dispvm-max", "1")
            (name,) = await place.waits(1)
            await place.parts.power.unpause(name)
            await until(lambda: not place.store.snapshot().domains[name].is_preload)
            await place.waits(1)
            assert place.state(name) == "Running"

    run(body)


def test_one_that_is_killed_is_replaced(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place):
            place.feature("dvm", "preload-dispvm-max", "1")
            (name,) = await place.waits(1)
            await place.parts.power.kill(name)
            await until(lambda: place.waiting() and name not in place.waiting())
            assert len(place.disposables()) == 1

    run(body)


def test_memory_is_left_for_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY_SECONDS", 0.01)

    async def body(place: Place) -> None:
        looks = 0

        class Counting(int):
            def __sub__(self, other: int) -> int:
                nonlocal looks
                looks += 1
                return int(self) - other

        place.parts.free_memory = Counting(1399)
        place.feature("dom0", "preload-dispvm-threshold", "1000")  # and 400 for the disposable
        place.feature("dvm", "preload-dispvm-max", "1")
        async with working(place):
            await until(lambda: looks > 3)
            assert place.disposables() == []
            place.parts.free_memory = 1400
            await place.waits(1)

    run(body)


def test_a_delay_below_zero_waits_until_none_is_left(run: Run) -> None:
    async def body(place: Place) -> None:
        place.feature("dvm", "preload-dispvm-delay", "-0.001")
        place.feature("dvm", "preload-dispvm-max", "2")
        async with working(place) as part:
            first, second = await place.waits(2)
            assert await part.create("dvm") == first
            await asyncio.sleep(0.05)
            assert place.waiting() == [second]
            assert await part.create("dvm") == second
            await place.waits(2)

    run(body)


def test_none_waits_while_its_template_is_removed(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place) as part:
            place.feature("dvm", "preload-dispvm-max", "1")
            await place.waits(1)
            async with part.none_of("dvm"):
                assert place.disposables() == []
                place.feature("dvm", "service.cups", "1")  # wakes it
                await asyncio.sleep(0.05)
                assert place.disposables() == []
                await place.parts.qubes.remove("dvm")
            await asyncio.sleep(0.05)
            assert place.disposables() == []

    run(body)


def test_a_removal_during_a_start(run: Run) -> None:
    async def body(place: Place) -> None:
        place.guests.may.clear()
        async with working(place) as part:
            await place.begun()
            async with part.none_of("dvm"):
                assert place.disposables() == []
            place.guests.may.set()
            await place.waits(1)  # the task that keeps them goes on

    run(body)


def test_a_caller_that_goes_away_leaves_none_behind(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place) as part:
            place.feature("dvm", "preload-dispvm-max", "1")
            (name,) = await place.waits(1)
            place.feature("dvm", "preload-dispvm-max", "0")
            asked = asyncio.create_task(part.create("dvm"))
            await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await until(lambda: place.disposables() == [])
            assert name not in place.parts.machines

    run(body)


def test_what_is_no_disposable_template(run: Run) -> None:
    async def body(place: Place) -> None:
        async with working(place) as part:
            with pytest.raises(QubeError):
                part.preload("deb")
            with pytest.raises(QubeError):
                await part.create("deb")

    run(body)
