"""qvm-backup: back qubes up, to a file of this host or into a qube."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from casemate.backup.profile import DEFAULT_FILTER, Profile
from casemate.cli import backing_up, passphrase, tool
from casemate.client.qubes import Qubes
from casemate.wire import names
from casemate.wire.admin import ADMIN

PROG = "qvm-backup"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.profile is not None:
        if args.backup_location or args.exclude or args.passphrase_file or args.compression is not None or args.dest_vm:
            raise tool.UsageError("With --profile nothing else can be said about the backup")
        name = str(names.argument(args.profile))
        return backing_up.by_profile(args, qubes, name)
    if args.backup_location is None:
        raise tool.UsageError("Give --profile, or where the backup is to go")
    return backing_up.described(args, qubes, _profile(args), args.save_profile)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 0 when the backup is complete, or was not wanted."""
    parser = tool.Parser(PROG, "Back qubes up. The backup is always encrypted; qvm-backup-restore reads it.")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--profile", metavar="NAME", help="make the backup that this profile describes")
    parser.add_argument("-x", "--exclude", action="append", default=[], metavar="VMNAME", help="not this qube")
    parser.add_argument("-d", "--dest-vm", metavar="VMNAME", help="the qube that takes the backup (default: this host)")
    parser.add_argument("-e", "--encrypt", action=tool.Ignored, why="every backup is encrypted")
    parser.add_argument("-p", "--passphrase-file", metavar="FILE", help=passphrase.FILE_HELP)
    parser.add_argument("-z", "--compress", dest="compression", action="store_true", default=None,
                        help=f"compress it, by {DEFAULT_FILTER} (the default)")  # fmt: skip
    parser.add_argument("--no-compress", dest="compression", action="store_false", help="do not compress it")
    parser.add_argument("-Z", "--compress-filter", dest="compression", metavar="NAME",
                        help="compress it by gzip, bzip2, xz or zstd")  # fmt: skip
    parser.add_argument("--save-profile", metavar="NAME", help="keep what is said here as a profile of this name")
    parser.add_argument("backup_location", nargs="?", help="directory or file; in a qube: directory or command")
    parser.add_argument("VMNAME", nargs="*", help="qubes to be backed up (default: those with include_in_backups)")
    return tool.run(parser, _body, argv)
