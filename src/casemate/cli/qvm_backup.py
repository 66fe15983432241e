"""qvm-backup: back qubes up, to a file of this host or into a qube."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

from casemate.backup.profile import DEFAULT_FILTER, Profile, build
from casemate.cli import passphrase, progress, tool
from casemate.client.qubes import Qubes
from casemate.client.transport import Events
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

PROG = "qvm-backup"
_UPSTREAM = "/etc/qubes/backup"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.profile is not None:
        if args.backup_location or args.exclude or args.passphrase_file or args.compression is not None or args.dest_vm:
            raise tool.UsageError("With --profile nothing else can be said about the backup")
        name = str(names.argument(args.profile))
        return _run(args, qubes, name) if _confirmed(args, qubes, name) else 0
    if args.backup_location is None:
        raise tool.UsageError("Give --profile, or where the backup is to go")
    name = str(names.argument(args.save_profile or f"backup-run-{os.getpid()}"))
    path = _directory(qubes) / f"{name}.conf"
    described = _profile(args)
    _write(path, build(described))
    done = False
    try:
        # The passphrase is asked for after the qubes were shown, and is in the file no longer than needed.
        if not _confirmed(args, qubes, name):
            return 0
        secret = passphrase.asked(args.passphrase_file, new=True).decode("utf-8", "surrogateescape")
        _write(path, build(replace(described, passphrase_text=secret)))
        status = _run(args, qubes, name)
        done = status == 0
        return status
    finally:
        if not args.save_profile or not done:
            path.unlink(missing_ok=True)


def _profile(args: argparse.Namespace) -> Profile:
    compression = args.compression
    packed = DEFAULT_FILTER if compression in (None, True) else compression or ""
    place = args.backup_location
    in_qube = args.dest_vm not in (None, ADMIN)
    return Profile(
        destination_vm=args.dest_vm or ADMIN,
        destination_path=place if in_qube else os.path.abspath(place),  # noqa: PTH100
        include=tuple(args.VMNAME) or None,
        exclude=tuple(args.exclude),
        filter=packed,
    )


def _directory(qubes: Qubes) -> Path:
    """Where a profile can be put so that the daemon finds it: in its state, or where the group may write."""
    from pathlib import Path

    own = qubes.transport.settings.state / "backup"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        if os.access(own, os.W_OK):
            return own
    except OSError:
        pass
    if os.access(_UPSTREAM, os.W_OK):
        return Path(_UPSTREAM)
    raise CasemateError(f"You may write neither to {own} nor to {_UPSTREAM}, where profiles of backups are")


def _write(path: Path, data: bytes) -> None:
    """Write a profile that nobody but us can read. It may exist: then it is replaced."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
    fresh.replace(path)


def _confirmed(args: argparse.Namespace, qubes: Qubes, name: str) -> bool:
    sys.stdout.write(qubes.call("admin.backup.Info", name))
    if args.yes:
        sys.stdout.flush()
        return True
    return tool.confirmed("Make this backup?", "No backup was made.\n")


def _run(args: argparse.Namespace, qubes: Qubes, name: str) -> int:
    """Have the daemon make it, and show how far it is. An interrupt cancels it."""
    failed: list[BaseException] = []
    over = threading.Event()

    def execute() -> None:
        try:
            qubes.call("admin.backup.Execute", name)
        except CasemateError as error:
            failed.append(error)
        finally:
            over.set()

    events = qubes.transport.events()
    shown = progress.bar(100, "%", args.quiet)
    work = threading.Thread(target=execute, daemon=True)
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
    if not args.quiet:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 0 when the backup is complete, or was not wanted."""
    parser = tool.Parser(PROG, "Back qubes up. The backup is always encrypted; qvm-backup-restore reads it.")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--profile", metavar="NAME", help="make the backup that this profile describes")
    parser.add_argument("-x", "--exclude", action="append", default=[], metavar="VMNAME", help="not this qube")
    parser.add_argument("-d", "--dest-vm", metavar="VMNAME", help="the qube that takes the backup (default: this host)")
    parser.add_argument("-e", "--encrypt", action=tool.Ignored, why="every backup is encrypted")
    parser.add_argument("-p", "--passphrase-file", metavar="FILE", help="file with the passphrase; - is standard input")
    parser.add_argument("-z", "--compress", dest="compression", action="store_true", default=None,
                        help=f"compress it, by {DEFAULT_FILTER} (the default)")  # fmt: skip
    parser.add_argument("--no-compress", dest="compression", action="store_false", help="do not compress it")
    parser.add_argument("-Z", "--compress-filter", dest="compression", metavar="NAME",
                        help="compress it by gzip, bzip2, xz or zstd")  # fmt: skip
    parser.add_argument("--save-profile", metavar="NAME", help="keep what is said here as a profile of this name")
    parser.add_argument("backup_location", nargs="?", help="directory or file; in a qube: directory or command")
    parser.add_argument("VMNAME", nargs="*", help="qubes to be backed up (default: those with include_in_backups)")
    return tool.run(parser, _body, argv)
