"""Has the daemon make a backup, by a profile that is there or one made for it: what the tools have in common."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from dataclasses import replace

from casemate.backup import whole_file
from casemate.backup.profile import UPSTREAM_PROFILES, Profile, build
from casemate.cli import passphrase, progress, tool
from casemate.client.qubes import Qubes
from casemate.client.transport import Events
from casemate.wire import names
from casemate.wire.errors import CasemateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def by_profile(args: argparse.Namespace, qubes: Qubes, name: str) -> int:
    """Make the backup of a profile that is there, if the user wants it; the exit status."""
    return execute(args.quiet, qubes, name) if _confirmed(args, qubes, name) else 0


def described(args: argparse.Namespace, qubes: Qubes, profile: Profile, save_as: str | None, new: bool = True) -> int:
    """Make the backup that a profile describes, which lacks the passphrase; keep the profile if a name is given.

    ``new``: the passphrase is chosen now. The exit status.
    """
    name = str(names.argument(save_as or f"backup-run-{os.getpid()}"))
    path = profile_directory(qubes) / f"{name}.conf"
    whole_file.replace(path, build(profile))
    done = False
    try:
        # The passphrase is asked for after the qubes were shown, and is in the file no longer than needed.
        if not _confirmed(args, qubes, name):
            return 0
        secret = passphrase.asked(args.passphrase_file, new=new).decode("utf-8", "surrogateescape")
        whole_file.replace(path, build(replace(profile, passphrase_text=secret)))
        status = execute(args.quiet, qubes, name)
        done = status == 0
        return status
    finally:
        if not save_as or not done:
            path.unlink(missing_ok=True)


def profile_directory(qubes: Qubes) -> Path:
    """Where a profile can be put so that the daemon finds it: in its state, or where the group may write."""
    own = qubes.transport.settings.state / "backup"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        if os.access(own, os.W_OK):
            return own
    except OSError:
        pass
    if os.access(UPSTREAM_PROFILES, os.W_OK):
        return UPSTREAM_PROFILES
    raise CasemateError(f"You may write neither to {own} nor to {UPSTREAM_PROFILES}, where profiles of backups are")


def _confirmed(args: argparse.Namespace, qubes: Qubes, name: str) -> bool:
    sys.stdout.write(qubes.call("admin.backup.Info", name))
    if args.yes:
        sys.stdout.flush()
        return True
    return tool.confirmed("Make this backup?", "No backup was made.\n")


def execute(quiet: bool, qubes: Qubes, name: str) -> int:
    """Have the daemon make the backup of a profile, and show how far it is. An interrupt cancels it."""
    failed: list[BaseException] = []
    over = threading.Event()

    def call() -> None:
        try:
            qubes.call("admin.backup.Execute", name)
        except CasemateError as error:
            failed.append(error)
        finally:
            over.set()

    events = qubes.transport.events()
    shown = progress.bar(100, "%", quiet)
    work = threading.Thread(target=call, daemon=True)
    work.start()
    try:
        _follow(events, name, over, shown)
    except KeyboardInterrupt:
        qubes.call("admin.backup.Cancel", name)
        over.wait()
    finally:
        shown.close()
        events.close()
    if failed:
        raise failed[0]
    if not quiet:
        sys.stderr.write("The backup is complete.\n")
    return 0


def _follow(events: Events, name: str, over: threading.Event, shown: progress.Bar) -> None:
    at = 0.0
    while not over.is_set():
        try:
            event = events.next(0.3)
        except TimeoutError:
            continue
        if event.name == "backup-progress" and event.details.get("backup_profile") == name:
            now = float(event.details.get("progress", "0"))
            shown.update(now - at)
            at = now
