"""``casemate uninstall``: ends all that runs and removes what Casemate has written; disks stay unless told.

The state directory is parted in two: KEPT is what it takes to find the qubes again with their disks, the rest can be
made again. The package's purge (packaging/debian) parts it by the same names.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from casemate.cli import tool
from casemate.cli.clean import clean_state, end_processes, machines_of
from casemate.client.qubes import Qubes
from casemate.settings import OWN, ROOT, Settings
from casemate.wire.errors import CasemateError, printable

KEPT = ("pools", "kernels", "qubes.xml", "qubes.xml.history", "repositories")
"""Names in the state directory: volumes, the kernels that their qubes boot, the store with its earlier saves, and
the incremental backups' repositories."""


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

    if machines_of(settings):
        qvm_shutdown.main(["--all", "--wait"])
    end_processes(settings)


def run(args: argparse.Namespace, qubes: Qubes) -> int:
    """Show what would go; with ``--yes`` do it."""
    settings = qubes.transport.settings
    if settings.shared:
        raise CasemateError("These qubes are those of the whole host, which root removes: sudo casemate uninstall")
    if args.stop:
        _stop(settings)
        return 0
    running = sorted(machines_of(settings).values())
    if running:
        print(f"These qubes run and would be ended: {', '.join(map(printable, running))}")
    for path in goes(settings, args.disks):
        print(f"removed   {printable(os.fspath(path))}")
    for name in () if args.disks else KEPT:
        if (settings.state / name).exists():
            print(f"kept      {printable(os.fspath(settings.state / name))}")
    if not args.yes:
        print("Nothing was changed. To do it: casemate uninstall --yes" + (" --disks" if args.disks else ""))
        return 0
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
    uninstall.set_defaults(body=run)
