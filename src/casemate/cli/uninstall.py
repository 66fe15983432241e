"""``casemate uninstall``: ends all that runs and removes what Casemate has written; disks stay unless told.

::

    STATE   KEPT: what it takes to find the qubes again with their disks; all else goes
    RUN, CACHE                                                            all of it goes
    elsewhere on this host: timers of backups, places of `casemate interop install`    go

The package's purge (packaging/debian/casemate.postrm) parts the state by the same names. It runs when the tools are
gone already, so what lies elsewhere is taken back before, by ``uninstall --elsewhere`` in casemate.prerm.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from casemate.cli import interop, tool
from casemate.client.qubes import Qubes
from casemate.settings import OWN, ROOT, Settings
from casemate.wire.errors import CasemateError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.backup.schedule import Schedule

KEPT = ("pools", "kernels", "qubes.xml", "qubes.xml.1", "qubes.xml.history", "intents")
"""Names in the state directory: volumes, the kernels that their qubes boot, the store, its earlier saves, which are all
there is when the store is damaged, and the journal of creations and removals. A crash leaves an entry in that where
volumes exist that the store does not know; without it nobody would ever remove them."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Something of ours outside of the state: what to call it, and how it is taken back."""

    what: str
    remove: Callable[[], None] = field(repr=False)


def elsewhere(settings: Settings, root: Path = Path("/")) -> list[Elsewhere]:
    """What this state has put elsewhere on the host. Only the whole host's state has anything of `casemate interop`.

    Raises ScheduleError for a record of a schedule that cannot be read: its timer could not be found.
    """
    from casemate.backup.schedule import Schedules

    schedules = Schedules(settings.state)
    found = [
        Elsewhere(f"the timer of {one.profile}", partial(_unschedule, settings, one, root)) for one in schedules.all()
    ]
    if settings.origin == ROOT and interop.removable(root):
        found.append(Elsewhere("what casemate interop install has put in place", partial(interop.remove, root)))
    return found


def _unschedule(settings: Settings, schedule: Schedule, root: Path) -> None:
    from casemate.backup.schedule import Schedules
    from casemate.cli import backup_schedule, host_timers

    unit = backup_schedule.unit_name(settings, schedule.profile)
    host_timers.of_kind(schedule.timer, root).remove(unit)
    Schedules(settings.state).remove(schedule.profile)


def goes(settings: Settings, disks: bool) -> list[Path]:
    """What would be removed: files and directories.

    The cache of built templates goes with the default state only: states that were named share it with others.
    """
    if disks:
        found = [settings.state]
    else:
        there = sorted(settings.state.iterdir()) if settings.state.is_dir() else []
        found = [path for path in there if path.name not in KEPT]
    found.append(settings.run)
    if settings.origin in (OWN, ROOT):
        found.append(settings.cache)
    unique = [one for one in found if not any(other != one and other in one.parents for other in found)]
    return [path for path in dict.fromkeys(unique) if path.exists()]


def _stop(settings: Settings) -> None:
    """Have all qubes shut down in order, then end what is left: a guest that is only killed loses unwritten data."""
    from casemate.cli import qvm_shutdown
    from casemate.cli.clean import end_processes, machines_of

    if machines_of(settings):
        qvm_shutdown.main(["--all", "--wait"])
    end_processes(settings)


def run(args: argparse.Namespace, qubes: Qubes) -> int:
    """Show what would go; with ``--yes`` do it."""
    import shutil

    from casemate.cli.clean import clean_state, machines_of

    settings = qubes.transport.settings
    if settings.shared:
        raise CasemateError("These qubes are those of the whole host, which root removes: sudo casemate uninstall")
    if args.stop:
        _stop(settings)
        return 0
    away = elsewhere(settings)
    if args.elsewhere:
        for one in away:
            one.remove()
        return 0
    running = sorted(machines_of(settings).values())
    if running:
        print(f"These qubes run and would be ended: {', '.join(map(printable, running))}")
    for path in goes(settings, args.disks):
        print(f"removed   {printable(os.fspath(path))}")
    for one in away:
        print(f"removed   {printable(one.what)}")
    for name in () if args.disks else KEPT:
        if (settings.state / name).exists():
            print(f"kept      {printable(os.fspath(settings.state / name))}")
    if not args.yes:
        print("Nothing was changed. To do it: casemate uninstall --yes" + (" --disks" if args.disks else ""))
        return 0
    for one in away:  # first: a timer must not start a backup, and with it the daemon, while files go
        one.remove()
    _stop(settings)
    if args.disks:
        clean_state(settings)
    for path in goes(settings, args.disks):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return 0


def add_to(commands: argparse._SubParsersAction[tool.Subparser]) -> None:
    """The command ``uninstall``."""
    uninstall = commands.add_parser("uninstall", help="end what runs and remove what was written; disks stay")
    uninstall.add_argument("-y", "--yes", action="store_true", help="do it; else it is only shown")
    uninstall.add_argument("--disks", action="store_true", help="remove the disks of all qubes, and the store, too")
    uninstall.add_argument("--stop", action="store_true", help="only shut down all qubes and end the daemon")
    uninstall.add_argument("--elsewhere", action="store_true", help="only take back what lies outside of the state")
    uninstall.set_defaults(body=run)
