"""Whose time it is: what a qube is told, and what qvm-sync-clock does on the host and in a qube. No test sets a real
clock: on the host a clock of the tests' own is put in its place, and in a qube the tool lacks the capability."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli import qvm_sync_clock
from casemate.cli.host_clock import HostClock
from casemate.wire.clock import format_date, parse_date
from casemate.wire.errors import CasemateError
from tests.component.rig import Rig, rig
from tests.component.test_api_other_sockets import ask
from tests.component.test_calls import AGENT, Place
from tests.fakes.daemon import FakeDaemon
from tests.fakes.shell import Shell, found_by_tools

SECOND = 10**9
HOUR = 3600 * SECOND


class SetClock(HostClock):
    """A clock that shows the real time until it is set."""

    def __init__(self) -> None:
        self.kept, self.ours, self.ahead = False, True, 0

    def now(self) -> int:
        return time.time_ns() + self.ahead

    def is_kept(self) -> bool:
        return self.kept

    def is_ours(self) -> bool:
        return self.ours

    def set(self, moment: int) -> None:
        self.ahead = moment - time.time_ns()


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:  # fmt: skip
    with found_by_tools(tmp_path, monkeypatch) as daemon:
        found = Shell(daemon, capsys)
        found("qvm-create -C TemplateVM -l black deb")
        for name in ("keeper", "work"):
            found(f"qvm-create -l red -t deb {name}")
        yield found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    found = SetClock()
    monkeypatch.setattr(qvm_sync_clock, "HOST", found)
    return found


def agent(daemon: FakeDaemon, name: str) -> Path:
    directory = daemon.socket.parent / "qubes" / name
    directory.mkdir(parents=True)
    return directory


def tell(keeper: Rig, ahead: int) -> None:
    """From now on the qube's clock is so many nanoseconds ahead of the real one."""
    seconds = ahead // SECOND
    keeper.service("qubes.GetDate", f'date -u -d "@$(( $(date +%s) + {seconds} ))" +%Y-%m-%dT%H:%M:%S,%N+00:00\n')


def date(daemon: FakeDaemon, arg: str = "") -> int:
    return parse_date((ask(daemon, "misc", "qubes.GetDate", arg, source="work")).encode())


def near(left: int, right: int) -> bool:
    return abs(left - right) < 60 * SECOND


def test_who_asks_gets_the_time_of_the_clockvm_while_it_runs(shell: Shell) -> None:
    assert near(date(shell.daemon), time.time_ns())
    assert date(shell.daemon, "nanoseconds") % SECOND
    with rig(agent(shell.daemon, "keeper")) as keeper:
        tell(keeper, 5 * HOUR)
        shell("qubes-prefs clockvm keeper")
        assert near(date(shell.daemon), time.time_ns()), "it does not run"
        shell("qvm-start keeper")
        assert near(date(shell.daemon), time.time_ns() + 5 * HOUR)
        assert date(shell.daemon) % SECOND == 0
        for answer in ("echo noon", "yes", "exit 3", "printf '2027-01-15T08:00:00+00:00\\n\\n'"):
            keeper.service("qubes.GetDate", f"{answer}\n")
            with pytest.raises(CasemateError):
                date(shell.daemon)


def test_the_clockvm_is_told_to_keep_its_clock(shell: Shell) -> None:
    shell("qubes-prefs clockvm keeper")
    assert shell("qvm-features keeper service.clocksync") == "1\n"
    shell("qubes-prefs clockvm work")
    shell("qvm-features keeper service.clocksync", status=1)
    assert shell("qvm-features work service.clocksync") == "1\n"
    shell("qubes-prefs -D clockvm")
    shell("qvm-features work service.clocksync", status=1)
    shell("qvm-features work service.clocksync --", "")  # what a person has said stays
    shell("qubes-prefs clockvm work")
    assert shell("qvm-features work service.clocksync") == "\n"


def test_the_host_and_its_qubes_follow_the_clockvm(shell: Shell, clock: SetClock, tmp_path: Path) -> None:
    shell("qubes-prefs clockvm keeper")
    told = tmp_path / "told"
    with rig(agent(shell.daemon, "keeper")) as keeper, rig(agent(shell.daemon, "work")) as work:
        work.service("qubes.SetDateTime", f"cat >{told}\n")
        shell("qvm-start work")
        shell("qvm-sync-clock")
        assert "keeper, which knows the time, does not run" in shell.err and clock.ahead == 0
        shell("qvm-start keeper")

        tell(keeper, 0)
        shell("qvm-sync-clock")
        assert (shell.err, clock.ahead) == ("", 0)

        tell(keeper, 2 * HOUR)
        clock.kept = True
        shell("qvm-sync-clock")
        assert "a time service keeps this host's" in shell.err and clock.ahead == 0
        assert near(parse_date(told.read_bytes()), time.time_ns())

        clock.kept, clock.ours = False, False
        shell("qvm-sync-clock")
        assert "only root" in shell.err and clock.ahead == 0
        assert near(parse_date(told.read_bytes()), time.time_ns() + 2 * HOUR)

        clock.ours = True
        told.unlink()
        shell("qvm-sync-clock")
        assert shell.err == "" and near(clock.ahead, 2 * HOUR)
        assert near(parse_date(told.read_bytes()), time.time_ns() + 2 * HOUR)


def test_a_wild_clock_is_refused_and_nothing_is_set(shell: Shell, clock: SetClock, tmp_path: Path) -> None:
    shell("qubes-prefs clockvm keeper")
    told = tmp_path / "told"
    with rig(agent(shell.daemon, "keeper")) as keeper, rig(agent(shell.daemon, "work")) as work:
        work.service("qubes.SetDateTime", f"cat >{told}\n")
        shell("qvm-start keeper work")
        for answer in ("echo noon", "yes", "exit 3"):
            keeper.service("qubes.GetDate", f"{answer}\n")
            shell("qvm-sync-clock", status=1)
        tell(keeper, 48 * HOUR)
        shell("qvm-sync-clock", status=1)
        assert "by more than a day" in shell.err and "--force" in shell.err
        assert clock.ahead == 0 and not told.exists()
        shell("qvm-sync-clock --force")
        assert near(clock.ahead, 48 * HOUR) and told.exists()


def test_in_a_qube_the_tool_takes_a_date_and_nothing_else(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.start()
    client = tmp_path / "bin/qrexec-client-vm"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\nexec {" ".join(AGENT)} qrexec-client-vm "$@"\n')
    client.chmod(0o755)
    environment = {**place.env, "PATH": f"{client.parent}:{os.environ['PATH']}"}
    without_the_right = ("setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time") if os.geteuid() == 0 else ()

    def run(service: str, *words: str) -> tuple[int, str]:
        place.service("qubes.GetDate", service)
        argv = [*without_the_right, *AGENT, "qvm-sync-clock", *words]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    try:
        wild = format_date(time.time_ns() + 48 * HOUR, True)
        assert run(f"printf '{wild}'")[0] == 1 and "--force" in run(f"printf '{wild}'")[1]
        assert "not a date" in run("yes")[1] and run("yes")[0] == 1
        assert run("exit 7")[0] == 7
        assert run("date -u -Iseconds", "--now")[0] == 2
        status, said = run("date -u -Iseconds")
        assert status == 1 and "Operation not permitted" in said
        status, said = run(f"printf '{wild}'", "--force")
        assert status == 1 and "Operation not permitted" in said
    finally:
        for process in place.processes:
            process.kill()
            process.wait()
