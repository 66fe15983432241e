"""Starts: each step and its way back, when a step fails, when the machine ends, and when the daemon was killed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from casemate.devices.device_class import DeviceClass, Machine
from casemate.engine.accounts import Accounts
from casemate.engine.bus import Bus
from casemate.engine.devices import Devices
from casemate.engine.machine import machine_spec
from casemate.engine.operations import OperationLocks
from casemate.engine.states import States
from casemate.engine.steps import Start, take_down, take_up
from casemate.host.hypervisor import PowerState
from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire.errors import CasemateError, NotHaltedError, StartError
from tests.builders import settings_in, small_system, uuid, within
from tests.fakes.engine import Engine

WHOLE = {"machine", "link", "directory", "mark", "volume root", "volume volatile"}


class Step:
    """Notes what is done to it; ``fails`` says where it fails."""

    def __init__(self, name: str, done: list[str], fails: str = "") -> None:
        self.name = name
        self.done = done
        self.fails = fails

    async def up(self, start: Start) -> None:
        self.done.append(f"{self.name} up")
        if self.fails == "up":
            raise StartError(f"{self.name} failed")

    async def down(self, domain: Domain) -> None:
        self.done.append(f"{self.name} down")
        if self.fails == "down":
            raise StartError(f"{self.name} failed")


def test_a_step_that_fails_half_way_is_taken_down_itself_and_those_after_it_are_not_touched() -> None:
    done: list[str] = []
    start = Start(small_system().domains["work"], lambda event: None)
    steps = [Step("a", done), Step("b", done, "up"), Step("c", done)]
    with pytest.raises(StartError, match="b failed"):
        asyncio.run(take_up(steps, start))
    assert done == ["a up", "b up", "b down", "a down"]


def test_a_step_that_does_not_come_down_keeps_no_other_from_it() -> None:
    done: list[str] = []
    steps = [Step("a", done), Step("b", done, "down"), Step("c", done)]
    with pytest.raises(StartError, match="b failed"):
        asyncio.run(take_down(steps, small_system().domains["work"]))
    assert done == ["c down", "b down", "a down"]


def run(directory: Path, work: Callable[[Engine], object]) -> None:
    engine = Engine(directory)
    asyncio.run(within(60, work(engine)))  # type: ignore[arg-type]


async def reaches(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def listens(engine: Engine) -> bool:
    """Whether a link of ``work`` could ask for calls."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(engine.settings.qube_run("work") / "broker.sock"))
        except OSError:
            return False
        return True


def test_a_start_that_fails_at_its_last_step_leaves_nothing(tmp_path: Path) -> None:
    async def work(engine: Engine) -> None:
        parts = await engine.daemon()
        engine.links.silent.add("work")
        with pytest.raises(StartError, match="did not answer"):
            await parts.lifecycle.start("work")
        assert engine.left() == set()
        assert parts.context.states.of("work") is PowerState.HALTED
        assert "work" not in parts.listener._listening, "nobody would ever close this socket"
        engine.links.silent.clear()
        await parts.lifecycle.start("work")
        assert engine.left() == WHOLE and listens(engine)
        await parts.listener.close_all()

    run(tmp_path, work)


def test_only_a_qubes_user_reaches_its_sockets(tmp_path: Path) -> None:
    async def work(engine: Engine) -> None:
        parts = await engine.daemon()
        await parts.lifecycle.start("work")
        assert engine.settings.qube_run("work").stat().st_mode & 0o777 == 0o700
        await parts.listener.close_all()

    run(tmp_path, work)


def test_a_machine_that_ends_takes_all_steps_down(tmp_path: Path) -> None:
    async def work(engine: Engine) -> None:
        parts = await engine.daemon()
        await parts.lifecycle.start("work")
        engine.machines.end(uuid(2))
        await reaches(lambda: parts.context.states.of("work") is PowerState.HALTED)
        assert engine.left() == set() and "work" not in parts.listener._listening

    run(tmp_path, work)


def test_figures_of_a_machine_that_has_ended_halt_no_qube(tmp_path: Path) -> None:
    """They may come before libvirt's event, and what is halted already is not taken down."""

    async def work(engine: Engine) -> None:
        parts = await engine.daemon()
        await parts.lifecycle.start("work")
        info = engine.machines.machines[uuid(2)]
        parts.context.states.set_all([replace(info, state=PowerState.HALTED)])
        assert parts.context.states.of("work") is PowerState.RUNNING
        engine.machines.end(uuid(2))
        await reaches(lambda: parts.context.states.of("work") is PowerState.HALTED)
        assert engine.left() == set()

    run(tmp_path, work)


def test_a_machine_whose_end_nobody_told_of_is_taken_down(tmp_path: Path) -> None:
    async def work(engine: Engine) -> None:
        parts = await engine.daemon()
        await parts.lifecycle.start("work")
        info = engine.machines.machines[uuid(2)]
        engine.machines.machines[uuid(2)] = replace(info, state=PowerState.HALTED)
        parts.figures.start()
        await reaches(lambda: parts.context.states.of("work") is PowerState.HALTED)
        parts.figures.close()
        assert engine.left() <= {"machine"}, "libvirt still knows it, as something that is off"

    run(tmp_path, work)


def test_a_qube_that_runs_is_not_removed(tmp_path: Path) -> None:
    async def work(engine: Engine) -> None:
        parts = await engine.daemon()
        await parts.lifecycle.start("work")
        with pytest.raises(NotHaltedError):
            await parts.creator.remove("work")
        assert engine.left() == WHOLE and "work" in engine.store.snapshot().domains
        await parts.listener.close_all()

    run(tmp_path, work)


# -- a daemon that was killed


def test_the_next_daemon_adopts_what_runs(tmp_path: Path) -> None:
    async def work(engine: Engine) -> None:
        first = await engine.daemon()
        await first.lifecycle.start("work")
        await first.listener.close_all()
        second = await engine.daemon()
        assert second.context.states.of("work") is PowerState.RUNNING
        assert engine.left() == WHOLE and listens(engine)
        await second.listener.close_all()

    run(tmp_path, work)


def test_the_next_daemon_takes_down_a_start_that_was_not_finished(tmp_path: Path) -> None:
    """Its mark is missing, whatever else is there: nobody waits for its agent any more."""

    async def work(engine: Engine) -> None:
        first = await engine.daemon()
        await first.lifecycle.start("work")
        await first.listener.close_all()
        engine.settings.qube_run("work").with_suffix(".up").unlink()
        second = await engine.daemon()
        assert second.context.states.of("work") is PowerState.HALTED
        assert engine.left() == set()

    run(tmp_path, work)


def test_the_next_daemon_ends_machines_that_no_qube_has(tmp_path: Path) -> None:
    """They would run on with nobody to stop them; and one that is named as a qube is not that qube's."""

    async def work(engine: Engine) -> None:
        engine.machines.add("stranger", uuid(77))
        engine.machines.add("work", uuid(78))
        parts = await engine.daemon()
        assert engine.machines.machines == {} and not engine.machines.defined & {uuid(77), uuid(78)}
        assert parts.context.states.of("work") is PowerState.HALTED

    run(tmp_path, work)


def test_the_next_daemon_removes_directories_of_qubes_that_are_gone(tmp_path: Path) -> None:
    async def work(engine: Engine) -> None:
        gone = engine.settings.qube_run("gone")
        gone.mkdir(parents=True)
        gone.with_suffix(".up").touch()
        await engine.daemon()
        assert not gone.exists() and not gone.with_suffix(".up").exists()

    run(tmp_path, work)


# -- who a qube's processes are


def test_each_qube_has_a_user_of_its_own_and_all_have_one_group(tmp_path: Path) -> None:
    system = small_system()
    accounts = Accounts(settings_in(tmp_path), root=True)
    found = [account for domain in system.domains.values() if (account := accounts.of(domain)) is not None]
    assert len({account.uid for account in found}) == len(found) == len(system.domains)
    assert {account.gid for account in found} == {accounts.group}
    assert accounts.group not in {account.uid for account in found} and min(a.uid for a in found) > 1 << 16


def test_a_qube_that_has_ended_has_no_right_left_to_any_device(tmp_path: Path) -> None:
    released: list[tuple[str, Machine]] = []

    def provider(name: str) -> DeviceClass:
        one = SimpleNamespace(release=lambda machine: released.append((name, machine)))
        return DeviceClass(name=name, doc="", open=lambda opening: one, subsystems=())  # type: ignore[arg-type,return-value]

    classes: Mapping[str, DeviceClass] = {name: provider(name) for name in ("one", "two")}
    accounts = Accounts(settings_in(tmp_path), root=True)
    devices = Devices(
        Store(tmp_path / "qubes.xml"), Bus(), States(), OperationLocks(), accounts, classes, SimpleNamespace()  # type: ignore[arg-type]
    )  # fmt: skip
    work = small_system().domains["work"]
    asyncio.run(devices.down(work))
    owner = accounts.of(work)
    assert owner is not None
    machine = Machine("work", work.uuid, owner.uid)
    assert released == [("one", machine), ("two", machine)]


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a/b", ".", "", "a b"])
def test_a_kernel_is_a_name_in_our_directory(tmp_path: Path, name: str) -> None:
    """D12: whatever a file that was edited by hand says, a machine boots nothing from elsewhere."""
    qube = SimpleNamespace(name="work", kernel=name, features={}, template=None, kernelopts="", memory=400, vcpus=1)
    qube.uuid = uuid(1)
    with pytest.raises(CasemateError):
        machine_spec(settings_in(tmp_path), qube, {}, "tcg", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("memory", 10, "too little"), ("memory", 1 << 23, "no qube can have"), ("vcpus", 200, "128 processors at most"),
     ("kernel", "gone", "no such kernel: 'gone'; there are none"), ("kernel", None, "must have one")],
)  # fmt: skip
def test_a_start_says_what_cannot_be_on_this_host(tmp_path: Path, name: str, value: object, said: str) -> None:
    """The collection may come from another host, so it is not enough to refuse what is set here."""

    async def scenario() -> None:
        engine = Engine(tmp_path)
        parts = await engine.daemon()
        with engine.store.write() as transaction:
            transaction.system.domains["work"].set(name, value)  # type: ignore[arg-type]
        with pytest.raises(CasemateError, match=said) as caught:
            await parts.context.power.start("work")
        assert f"property {name}" in str(caught.value) and parts.context.states.all() == {}

    asyncio.run(scenario())
