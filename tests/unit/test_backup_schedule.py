"""Schedules of backups: their records and verdicts, the units and lines of cron, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.backup.schedule import Run, Schedule, ScheduleError, Schedules, profile_name, verdict
from casemate.cli import host_timers
from casemate.cli.schedule_time import When, understood
from casemate.wire.errors import CasemateError
from tests.fakes.host_programs import HostPrograms

DAY = 86400
DAILY = When("daily", "daily", DAY)
NAME = "casemate-backup-1-nightly"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostPrograms:
    return HostPrograms(tmp_path / "host", monkeypatch)


@pytest.mark.parametrize(
    ("last", "running", "now", "said"),
    [
        (None, False, 1.4 * DAY, "has not run yet"),
        (None, False, 1.6 * DAY, "OVERDUE: has not run yet"),
        (Run(DAY, DAY + 9, DAY + 9), False, 2.4 * DAY, "whole, "),
        (Run(DAY, DAY + 9, DAY + 9), False, 2.6 * DAY, "OVERDUE: whole, "),
        (Run(DAY, 0, DAY + 9, "no room"), False, 1.4 * DAY, "FAILED "),
        (Run(3 * DAY, DAY, 3 * DAY, "no room"), False, 3 * DAY, "OVERDUE: FAILED "),
        (Run(DAY), True, 1.1 * DAY, "running since "),
        (Run(DAY), False, 1.1 * DAY, "BROKEN OFF: "),
    ],
)
def test_what_is_said_of_a_schedule(last: Run | None, running: bool, now: float, said: str) -> None:
    text = verdict(Schedule("nightly", "daily", DAY, 0, "cron"), last, running, now)
    assert text.startswith(said)
    assert not (last and last.reason) or last.reason in text


def test_records_come_back_and_go(tmp_path: Path) -> None:
    schedules = Schedules(tmp_path)
    assert schedules.all() == [] and schedules.find("nightly") is None
    made = Schedule("nightly", "daily", DAY, 5, "systemd")
    schedules.put(made)
    schedules.began("nightly")
    begun = schedules.last_run("nightly")
    assert begun is not None and begun.ended is None and begun.whole == 0
    schedules.ended("nightly")
    whole = schedules.last_run("nightly")
    assert whole is not None and whole.whole == whole.ended and not whole.reason
    schedules.ended("nightly", "no room")
    failed = schedules.last_run("nightly")
    assert failed is not None and failed.reason == "no room" and failed.whole == whole.whole
    assert schedules.all() == [made]
    schedules.remove("nightly")
    assert schedules.all() == [] and list((tmp_path / "backup").iterdir()) == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    schedules = Schedules(tmp_path)
    schedules.put(Schedule("nightly", "daily", DAY, 5, "systemd"))
    path = tmp_path / "backup/schedules/nightly.json"
    for content in ("{", "[]", '{"profile": "x", "other": 1}', '{"profile": 5}', "\xff"):
        path.write_text(content, "latin-1")
        with pytest.raises(ScheduleError, match=r"nightly\.json"):
            schedules.all()


def test_runs_of_one_schedule_exclude_each_other(tmp_path: Path) -> None:
    schedules = Schedules(tmp_path)
    with schedules.held("nightly") as there:
        assert not there
    schedules.put(Schedule("nightly", "daily", DAY, 5, "systemd"))
    with schedules.held("nightly") as there:
        assert there and schedules.running("nightly")
        with pytest.raises(ScheduleError, match="is running"), schedules.held("nightly", wait=0):
            pass
    assert not schedules.running("nightly")


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", ".x", "a\nb", "a/b"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(CasemateError):
        profile_name(name)


def test_calendar_expressions(host: HostPrograms) -> None:
    assert understood("weekly") == When("weekly", "weekly", 7 * DAY)
    with pytest.raises(ScheduleError, match="without systemd"):
        understood("Mon..Fri 02:30")
    host.with_systemd()
    assert understood("Mon..Fri 02:30") == When("Mon..Fri 02:30", "Mon..Fri *-*-* 02:30:00", 3 * DAY)
    for bad in ("nonsense", "2020-01-01", "", " ", "daily\nExecStart=x", "x" * 300, "--help"):
        with pytest.raises(ScheduleError):
            understood(bad)


def test_units_are_written_and_removed(host: HostPrograms) -> None:
    host.with_systemd()
    timer = host_timers.of_host(host.root)
    timer.put(NAME, "a backup", When("x", "Mon *-*-* 02:30:00", DAY), ["/a b/c%d$e", 'f"g'], {"KEY": "v w%"})
    service, unit = ((host.units / f"{NAME}.{kind}").read_text() for kind in ("service", "timer"))
    assert 'ExecStart="/a b/c%%d$$e" "f\\"g"\n' in service and 'Environment="KEY=v w%%"\n' in service
    assert "KillMode=process\n" in service
    assert "OnCalendar=Mon *-*-* 02:30:00\nPersistent=true\n" in unit and "WantedBy=timers.target" in unit
    assert host.asked() == ["daemon-reload", f"enable {NAME}.timer", f"restart {NAME}.timer"]
    timer.remove(NAME)
    assert host.written() == [] and host.asked()[3:] == [f"disable --now {NAME}.timer", "daemon-reload"]
    timer.remove(NAME)


def test_what_systemd_refuses_leaves_the_units_as_they_were(host: HostPrograms) -> None:
    host.with_systemd()
    timer = host_timers.of_host(host.root)
    (host.programs / "systemctl.fails").touch()
    with pytest.raises(ScheduleError, match="Failed to connect to bus"):
        timer.put(NAME, "a backup", DAILY, ["/x"], {})
    assert host.written() == []
    (host.programs / "systemctl.fails").unlink()
    timer.put(NAME, "a backup", DAILY, ["/x"], {})
    before = {name: (host.units / name).read_text() for name in host.written()}
    (host.programs / "systemctl.fails").touch()
    with pytest.raises(ScheduleError):
        timer.put(NAME, "a backup", DAILY, ["/other"], {})
    assert before == {name: (host.units / name).read_text() for name in host.written()} and len(before) == 2


def test_a_unit_of_somebody_else_stays(host: HostPrograms) -> None:
    host.with_systemd()
    host.units.mkdir(parents=True)
    (host.units / f"{NAME}.service").write_text("[Unit]\n")
    timer = host_timers.of_host(host.root)
    for act in (lambda: timer.put(NAME, "a backup", DAILY, ["/x"], {}), lambda: timer.remove(NAME)):
        with pytest.raises(ScheduleError, match="not written by us"):
            act()
    assert host.written() == [f"{NAME}.service"] and host.asked() == []


def test_lines_of_cron(host: HostPrograms) -> None:
    mine = "MAILTO=me\n5 4 * * * mine %\n"
    host.with_cron(mine)
    timer = host_timers.of_host(host.root)
    for command in ("/first", "/a b%c"):
        timer.put(NAME, "a backup", DAILY, [command], {"KEY": "v w"})
    timer.put(f"{NAME}2", "a backup", DAILY, ["/second"], {})
    lines = host.table.read_text().splitlines()
    assert lines[:2] == mine.splitlines() and lines[3] == "@daily KEY='v w' '/a b\\%c'" and lines[4] == f"# END {NAME}"
    assert len(lines) == 8
    timer.remove(NAME)
    timer.remove(f"{NAME}2")
    assert host.table.read_text() == mine
    with pytest.raises(ScheduleError, match="needs systemd"):
        timer.put(NAME, "a backup", When("Mon 02:30", "Mon *-*-* 02:30:00", DAY), ["/x"], {})
    host.table.unlink()
    timer.put(NAME, "a backup", DAILY, ["/x"], {})
    timer.remove(NAME)
    assert not host.table.exists()


def test_a_crontab_that_cannot_be_read_is_not_replaced(host: HostPrograms) -> None:
    host.with_cron("mine\n")
    timer = host_timers.of_host(host.root)
    (host.programs / "crontab.broken").touch()
    with pytest.raises(ScheduleError, match="cannot open spool"):
        timer.put(NAME, "a backup", DAILY, ["/x"], {})
    (host.programs / "crontab.broken").unlink()
    assert host.table.read_text() == "mine\n"
    host.table.write_text(f"# BEGIN {NAME}: x\nmine\n")
    with pytest.raises(ScheduleError, match="mend it by hand"):
        timer.remove(NAME)
    assert host.table.read_text() == f"# BEGIN {NAME}: x\nmine\n"


def test_a_host_with_neither_is_told(host: HostPrograms) -> None:
    with pytest.raises(ScheduleError, match="neither systemd nor cron"):
        host_timers.of_host(host.root)
