"""``casemate backup schedule``, ``unschedule`` and ``run``: backups that the host makes by itself.

::

    schedule ── host_timers.py    systemd or cron, which then runs:  casemate backup run PROFILE
        └────── backup.schedule   the record in the state  ── run writes how it ended ── casemate status shows it
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

from casemate.backup.schedule import Schedule, ScheduleError, Schedules, profile_name
from casemate.cli import json_output, tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.host_timers import Timer
    from casemate.settings import Settings


def schedule(args: argparse.Namespace, qubes: Qubes) -> int:
    """Have the backup of a profile made again and again; without a profile, list the schedules."""
    if args.PROFILE is None:
        return _listed(qubes, json_output.wanted(args))
    if args.WHEN is None:
        raise tool.UsageError("Say when: daily, weekly, hourly or a calendar expression of systemd")
    from casemate.backup import profile as profiles
    from casemate.cli import host_timers
    from casemate.cli.schedule_time import understood

    settings = _own(qubes)
    name = profile_name(args.PROFILE)
    profile = profiles.find(name, profiles.directories(settings.state))
    if profile.passphrase_text is None and profile.passphrase_vm is None:
        raise ScheduleError(
            f"The profile {name} has no passphrase, and nobody is there to type one when the timer runs: "
            "give it passphrase_text or passphrase_vm"
        )
    if profile.passphrase_text is not None:
        profiles.check_passphrase(profile.passphrase_text)
    when = understood(args.WHEN)
    root = Path(args.root)
    timer = host_timers.of_host(root)
    schedules = Schedules(settings.state)
    with schedules.held(name):
        before = schedules.find(name)
        unit, (argv, env) = unit_name(settings, name), _command(settings, name)
        # The record comes first: a timer without one could not be found again to be removed.
        schedules.put(Schedule(name, when.said, when.period, int(time.time()), timer.kind))
        try:
            timer.put(unit, f"Casemate: backup by the profile {name}", when, argv, env)
            if before is not None and before.timer != timer.kind:
                _leave(host_timers.of_kind(before.timer, root), timer, unit)
        except BaseException:
            if before is None:
                schedules.remove(name)
            else:
                schedules.put(before)
            raise
    if not args.quiet:
        sys.stderr.write(f"The backup by {name} is scheduled {when.said}, by {timer.kind}.\n")
    return 0


def _leave(old: Timer, new: Timer, unit: str) -> None:
    """Remove what another kind of timer has of a schedule; where that fails, remove what the new one has."""
    try:
        old.remove(unit)
    except ScheduleError:
        new.remove(unit)
        raise


def unschedule(args: argparse.Namespace, qubes: Qubes) -> int:
    """Remove the schedule of a profile, with all that was written for it."""
    from casemate.cli import host_timers

    settings = _own(qubes)
    name = profile_name(args.PROFILE)
    schedules = Schedules(settings.state)
    with schedules.held(name) as there:
        found = schedules.find(name) if there else None
        if found is None:
            raise ScheduleError(f"The profile {name} is not scheduled")
        host_timers.of_kind(found.timer, Path(args.root)).remove(unit_name(settings, name))
        schedules.remove(name)
    return 0


def run(args: argparse.Namespace, qubes: Qubes) -> int:
    """Make the backup of a profile, prune by its ``keep``, and record how it ended where the profile is scheduled."""
    from casemate.cli import backing_up

    settings = _own(qubes)
    name = profile_name(args.PROFILE)
    schedules = Schedules(settings.state)
    with schedules.held(name) as there:
        if not there:
            return backing_up.execute(args.quiet, qubes, name)
        schedules.began(name)
        try:
            status = backing_up.execute(args.quiet, qubes, name)
        except KeyboardInterrupt:
            schedules.ended(name, "it was interrupted")
            raise
        except (CasemateError, OSError) as error:
            schedules.ended(name, str(error) or type(error).__name__)
            raise
        schedules.ended(name)
        return status


def status_lines(settings: Settings) -> list[str]:
    """A line for each schedule of a state: its profile, its times and how its last run ended.

    Empty where there is none, or where the state is another user's, whose records are closed to us.
    """
    if settings.shared:
        return []
    schedules, lines = Schedules(settings.state), []
    try:
        for one in schedules.all():
            lines.append(f"{one.profile} ({one.when}): {schedules.told(one)}")
    except (ScheduleError, OSError) as error:
        lines.append(f"UNKNOWN: {error}")
    return [printable(line, 600) for line in lines]


def _listed(qubes: Qubes, as_json: bool) -> int:
    from casemate.cli.table import table

    schedules = Schedules(_own(qubes).state)
    if as_json:
        return json_output.write([
            {"profile": one.profile, "when": one.when, "by": one.timer, "last_run": schedules.told(one)}
            for one in schedules.all()
        ])  # fmt: skip
    rows = [("PROFILE", "WHEN", "BY", "LAST RUN")]
    for one in schedules.all():
        rows.append((one.profile, one.when, one.timer, printable(schedules.told(one), 500)))
    sys.stdout.write(table(rows))
    return 0


def _own(qubes: Qubes) -> Settings:
    """The settings, if the state is our own. Its timer must run as the user whose daemon it is."""
    settings = qubes.transport.settings
    if settings.shared:
        raise ScheduleError("The state is that of the whole host: only root can schedule its backups")
    return settings


def unit_name(settings: Settings, profile: str) -> str:
    """The name of the units of a profile. Two states of one user get different ones."""
    state = os.fspath(settings.state)
    which = hashlib.sha256(os.fsencode(state)).hexdigest()[:8]
    # Only these characters are possible in a unit's name; others are written as systemd-escape(1) does.
    escaped = "".join(c if c.isalnum() or c in "_.:-" else f"\\x{ord(c):02x}" for c in profile)
    return f"casemate-backup-{which}-{escaped}"


def _command(settings: Settings, profile: str) -> tuple[list[str], dict[str, str]]:
    """What the timer runs, and its environment, which names the state: a timer has no environment of the user's."""
    from casemate.cli.interop import BIN

    argv, env = [os.fspath(BIN / "casemate"), "-q", "backup", "run", profile], settings.environment()
    if not all(text.isprintable() for text in (*argv, *env.values())):
        raise ScheduleError(f"The path of the state or of Casemate has control characters: {printable(str(env), 300)}")
    return argv, env
