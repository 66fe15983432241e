"""qvm-backup-restore: restore qubes of a backup, or verify it; 0 only when all that was asked for is whole."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

from casemate.backup.contents import Contents
from casemate.backup.outer import Member, members
from casemate.backup.reader import Backup, Nothing, Report, Verdict
from casemate.cli import passphrase, progress, tool
from casemate.cli.table import table
from casemate.client import restore
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, printable

PROG = "qvm-backup-restore"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.backup_location == "-" and (args.passphrase_file in (None, "-") or not (args.yes or args.verify_only)):
        raise tool.UsageError("A backup on standard input needs --passphrase-file FILE, and --yes or --verify-only")
    secret = passphrase.asked(args.passphrase_file)
    with _members(args) as found, contextlib.closing(Backup(found, secret, args.compression_filter or "")) as backup:
        return _verify(args, backup) if args.verify_only else _restore(args, backup, qubes)


def _members(args: argparse.Namespace) -> contextlib.AbstractContextManager[Iterator[Member]]:
    if args.dest_vm not in (None, ADMIN):
        from casemate.client.backup_in_qube import backup_in_qube  # imports subprocess, which takes time

        return backup_in_qube(args.dest_vm, args.backup_location)
    return _of_this_host(args.backup_location)


@contextlib.contextmanager
def _of_this_host(place: str) -> Iterator[Iterator[Member]]:
    try:
        if place == "-":
            yield members(sys.stdin.buffer)
            return
        with open(place, "rb") as file:
            yield members(file)
    except OSError as error:
        raise CasemateError(f"{error.filename or place}: {error.strerror}") from None


def _only(args: argparse.Namespace) -> frozenset[str] | None:
    return frozenset(args.VMNAME) or None


def _verify(args: argparse.Namespace, backup: Backup) -> int:
    chosen = _named(backup.contents, args)
    shown = progress.bar(_expected(backup.contents, chosen), "B", args.quiet)
    try:
        report = backup.run(Nothing(shown.update), chosen, home=_only(args) is None)
    finally:
        shown.close()
    return _tell(report, {}, args.quiet)


def _named(contents: Contents, args: argparse.Namespace) -> list[str]:
    options = restore.Options(only=_only(args), exclude=frozenset(args.exclude))
    return [one.name for one in restore.wanted(contents, options)]


def _expected(contents: Contents, chosen: Sequence[str]) -> int:
    return max(1, sum(contents.qubes[name].size for name in chosen))


def _restore(args: argparse.Namespace, backup: Backup, qubes: Qubes) -> int:
    for name in restore.clear_up(qubes):
        sys.stderr.write(f"{name} was left behind by a restore that was killed; it was removed\n")
    options = restore.Options(
        _only(args), frozenset(args.exclude), args.skip_conflicting, args.rename_conflicting, args.ignore_missing,
        args.skip_broken, args.keep_damaged,
    )  # fmt: skip
    planned = restore.plan(backup.contents, qubes, options)
    _show(planned)
    if not planned.qubes:
        sys.stderr.write("There is nothing to be restored.\n")
        return 1 if planned.left_out and not args.skip_conflicting else 0
    if not args.yes and not tool.confirmed("Restore these qubes?", "Nothing was restored.\n"):
        return 0
    shown = progress.bar(_expected(backup.contents, list(planned.qubes)), "B", args.quiet)
    noted = len(planned.notes)
    target = restore.Restore(qubes, planned, shown.update)
    target.create()
    try:
        report = backup.run(target, list(planned.qubes), home=False)
        target.settle(report, args.keep_damaged)
    except BaseException:
        target.undo()
        raise
    finally:
        shown.close()
    report.notes += planned.notes[noted:]
    status = _tell(report, {name: one.name for name, one in planned.qubes.items()}, args.quiet)
    return status or (1 if planned.left_out and not args.skip_conflicting else 0)


def _show(planned: restore.Plan) -> None:
    rows = [(old, one.stored.klass, one.label, one.template or "-", one.name) for old, one in planned.qubes.items()]
    sys.stdout.write(table([("NAME", "CLASS", "LABEL", "TEMPLATE", "RESTORED AS"), *rows]))
    for name, why in planned.left_out.items():
        sys.stdout.write(f"{name} is left out: {why}\n")
    for note in planned.notes:
        sys.stdout.write(f"{note}\n")
    sys.stdout.flush()


def _tell(report: Report, new_names: dict[str, str], quiet: bool) -> int:
    """The verdict of each qube, and what else is to be known; the exit status."""
    if not quiet or not report.whole:
        rows = [(one.name, one.state, _restored_as(one, new_names), printable(one.why, 300)) for one in report.all]
        sys.stdout.write(table([("NAME", "VERDICT", "RESTORED AS", "WHY"), *rows]))
    sys.stdout.flush()
    for note in report.notes:
        sys.stderr.write(f"{note}\n")
    if report.error:
        tool.say_error(PROG, f"The backup could not be read to its end: {report.error}")
    elif not report.whole:
        tool.say_error(PROG, "Not everything is whole")
    return 0 if report.whole else 1


def _restored_as(verdict: Verdict, new_names: dict[str, str]) -> str:
    return new_names.get(verdict.name, "-") if verdict.state == "whole" else "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Restore qubes from a backup of Casemate or Qubes OS (version 4, 3 or 2), or verify it.")
    add = parser.add_argument
    add("-y", "--yes", action="store_true", help="do not ask")
    add("--verify-only", action="store_true", help="read all of it, decrypt, decompress and compare; restore nothing")
    add("--skip-broken", action="store_true", help="leave out qubes whose template is missing")
    add("--ignore-missing", action="store_true", help="take the default template for one that is missing")
    add("--skip-conflicting", action="store_true", help="leave out qubes whose name is taken")
    add("--rename-conflicting", action="store_true", help="give qubes whose name is taken a new one")
    add("--keep-damaged", action="store_true", help="keep what arrived of damaged qubes; they cannot be started")
    add("-x", "--exclude", action="append", default=[], metavar="VMNAME", help="not this qube")
    add("-Z", "--compression-filter", metavar="NAME", help="decompress by this filter, whatever the header says")
    add("-d", "--dest-vm", metavar="VMNAME", help="the qube that has the backup (default: this host)")
    add("-p", "--passphrase-file", metavar="FILE", help="file with the passphrase; - is standard input")
    never = "the home directory of this host is never part of a restore here"
    add("--skip-dom0-home", action=tool.Ignored, why=never)
    add("--ignore-username-mismatch", action=tool.Ignored, why=never)
    add("--ignore-size-limit", action=tool.Ignored, why="there is none: a backup is read as a stream")
    add("--auto-close", action=tool.Ignored, why="it opens no window")
    add("--paranoid-mode", "--plan-b", action=tool.Refused, why="a backup is read on this host, not in a disposable")
    add("--location-is-service", action=tool.Refused, why="with --dest-vm a location is a file or a command there")
    add("backup_location", help="the backup: a file, or - for standard input")
    add("VMNAME", nargs="*", help="only these qubes of the backup")
    return tool.run(parser, _body, argv)
