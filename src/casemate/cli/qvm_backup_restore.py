"""qvm-backup-restore: restore qubes of a backup, or verify it; 0 only when all that was asked for is whole."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

from casemate.backup.outer import Member, members
from casemate.backup.reader import Backup
from casemate.cli import passphrase, tool
from casemate.cli.restore_options import add_options
from casemate.cli.restoring import restore_from, verify
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from casemate.cli.restoring import Readable

PROG = "qvm-backup-restore"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.backup_location == "-" and (args.passphrase_file in (None, "-") or not (args.yes or args.verify_only)):
        raise tool.UsageError("A backup on standard input needs --passphrase-file FILE, and --yes or --verify-only")
    if args.location_is_service and not _in_qube(args):
        raise tool.UsageError("--location-is-service needs --dest-vm: the qube that has the service")
    secret = passphrase.asked(args.passphrase_file)
    with (_apart if args.paranoid_mode else _here)(args, qubes, secret) as backup:
        return verify(PROG, args, backup) if args.verify_only else restore_from(PROG, args, backup, qubes)


def _in_qube(args: argparse.Namespace) -> bool:
    return args.dest_vm not in (None, ADMIN)


@contextlib.contextmanager
def _here(args: argparse.Namespace, _qubes: Qubes, secret: bytes) -> Iterator[Readable]:
    """Read the backup in this process."""
    with _members(args) as found, contextlib.closing(Backup(found, secret, args.compression_filter or "")) as backup:
        yield backup


@contextlib.contextmanager
def _apart(args: argparse.Namespace, qubes: Qubes, secret: bytes) -> Iterator[Readable]:
    """Have the backup read in a disposable."""
    from casemate.client.backup_in_qube import bytes_in_qube
    from casemate.client.paranoid import opened

    forced = args.compression_filter or ""
    if _in_qube(args):
        with (
            bytes_in_qube(args.dest_vm, args.backup_location, args.location_is_service) as read,
            opened(qubes, read, "qfile", secret, forced) as backup,
        ):
            yield backup
        return
    with _opened(args.backup_location) as file, opened(qubes, file.read, "tar", secret, forced) as backup:
        yield backup


def _members(args: argparse.Namespace) -> contextlib.AbstractContextManager[Iterator[Member]]:
    if _in_qube(args):
        from casemate.client.backup_in_qube import backup_in_qube  # imports subprocess, which takes time

        return backup_in_qube(args.dest_vm, args.backup_location, args.location_is_service)
    return _of_this_host(args.backup_location)


@contextlib.contextmanager
def _of_this_host(place: str) -> Iterator[Iterator[Member]]:
    with _opened(place) as file:
        yield members(file)


@contextlib.contextmanager
def _opened(place: str) -> Iterator[BinaryIO]:
    try:
        if place == "-":
            yield sys.stdin.buffer
            return
        with open(place, "rb") as file:
            yield file
    except OSError as error:
        raise CasemateError(f"{error.filename or place}: {error.strerror}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Restore qubes from a backup of Casemate or Qubes OS (version 4, 3 or 2), or verify it.")
    add = parser.add_argument
    add("-y", "--yes", action="store_true", help="do not ask")
    add("--verify-only", action="store_true", help="read all of it, decrypt, decompress and compare; restore nothing")
    add_options(parser)
    add("-Z", "--compression-filter", metavar="NAME", help="decompress by this filter, whatever the header says")
    add("-d", "--dest-vm", metavar="VMNAME", help="the qube that has the backup (default: this host)")
    add("-p", "--passphrase-file", metavar="FILE", help=passphrase.FILE_HELP)
    never = "the home directory of this host is never part of a restore here"
    add("--skip-dom0-home", action=tool.Ignored, why=never)
    add("--ignore-username-mismatch", action=tool.Ignored, why=never)
    add("--ignore-size-limit", action=tool.Ignored, why="there is none: a backup is read as a stream")
    add("--auto-close", action=tool.Ignored, why="it opens no window")
    add(
        "--paranoid-mode", "--plan-b", action="store_true",
        help="trust the backup in nothing: read it in a disposable without a network (of management_dispvm)",
    )  # fmt: skip
    add(
        "--location-is-service", action="store_true",
        help="the location is a service of that qube, such as qubes.RestoreById+ID",
    )  # fmt: skip
    add("backup_location", help="the backup: a file, or - for standard input")
    add("VMNAME", nargs="*", help="only these qubes of the backup")
    return tool.run(parser, _body, argv)
