"""Verifies and restores a backup of whatever form, with a verdict on each qube: what the tools have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence

from casemate.backup.contents import Contents
from casemate.backup.reader import Nothing, Report, Target, Verdict
from casemate.cli import json_output, progress, tool
from casemate.cli.table import table
from casemate.client import restore
from casemate.client.qubes import Qubes
from casemate.wire.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """A backup that has been opened."""

        contents: Contents

        def run(self, target: Target, only: Collection[str] | None = None, home: bool = True) -> Report: ...


def _only(args: argparse.Namespace) -> frozenset[str] | None:
    return frozenset(args.VMNAME) or None


def verify(prog: str, args: argparse.Namespace, backup: Readable) -> int:
    """Read a backup, restoring nothing, and show the verdicts; the exit status is 0 when all is whole."""
    chosen = _named(backup.contents, args)
    shown = _progress(args, _expected(backup.contents, chosen))
    try:
        report = backup.run(Nothing(shown.update), chosen, home=_only(args) is None)
    finally:
        shown.close()
    return _tell(prog, args, report, {}, {})


def _progress(args: argparse.Namespace, total: int) -> progress.Bar:
    if getattr(args, "progress", False):
        return progress.Lines(total)
    return progress.bar(total, "B", args.quiet)


def _named(contents: Contents, args: argparse.Namespace) -> list[str]:
    options = restore.Options(only=_only(args), exclude=frozenset(args.exclude))
    return [one.name for one in restore.wanted(contents, options)]


def _expected(contents: Contents, chosen: Sequence[str]) -> int:
    return max(1, sum(contents.qubes[name].size for name in chosen))


def restore_from(prog: str, args: argparse.Namespace, backup: Readable, qubes: Qubes) -> int:
    """Restore qubes of a backup and show the verdicts; the exit status is 0 when all that was asked for is whole."""
    if json_output.wanted(args) and not args.yes:
        raise tool.UsageError("--json needs --yes: nobody could be asked")
    for name in restore.clear_up(qubes):
        sys.stderr.write(f"{name} was left behind by a restore that was killed; it was removed\n")
    options = restore.Options(
        _only(args), frozenset(args.exclude), args.skip_conflicting, args.rename_conflicting, args.ignore_missing,
        args.skip_broken, args.keep_damaged, distrust=getattr(args, "paranoid_mode", False),
    )  # fmt: skip
    planned = restore.plan(backup.contents, qubes, options)
    if not json_output.wanted(args):
        _show(planned)
    if not planned.qubes:
        if json_output.wanted(args):
            json_output.write(_facts(None, {}, planned.left_out, planned.notes))
        sys.stderr.write("There is nothing to be restored.\n")
        return 1 if planned.left_out and not args.skip_conflicting else 0
    if not args.yes and not tool.confirmed("Restore these qubes?", "Nothing was restored.\n"):
        return 0
    shown = _progress(args, _expected(backup.contents, list(planned.qubes)))
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
    report.notes += planned.notes[0 if json_output.wanted(args) else noted :]
    new_names = {name: one.name for name, one in planned.qubes.items()}
    status = _tell(prog, args, report, new_names, planned.left_out)
    return status or (1 if planned.left_out and not args.skip_conflicting else 0)


def _show(planned: restore.Plan) -> None:
    rows = [(old, one.stored.klass, one.label, one.template or "-", one.name) for old, one in planned.qubes.items()]
    sys.stdout.write(table([("NAME", "CLASS", "LABEL", "TEMPLATE", "RESTORED AS"), *rows]))
    for name, why in planned.left_out.items():
        sys.stdout.write(f"{name} is left out: {why}\n")
    for note in planned.notes:
        sys.stdout.write(f"{note}\n")
    sys.stdout.flush()


def _tell(
    prog: str, args: argparse.Namespace, report: Report, new_names: dict[str, str], left_out: dict[str, str]
) -> int:
    """The verdict of each qube, and what else is to be known; the exit status."""
    if json_output.wanted(args):
        json_output.write(_facts(report, new_names, left_out, report.notes))
        return 0 if report.whole else 1
    if not args.quiet or not report.whole:
        rows = [(one.name, one.state, _restored_as(one, new_names), printable(one.why, 300)) for one in report.all]
        sys.stdout.write(table([("NAME", "VERDICT", "RESTORED AS", "WHY"), *rows]))
    sys.stdout.flush()
    for note in report.notes:
        sys.stderr.write(f"{note}\n")
    if report.error:
        tool.say_error(prog, f"The backup could not be read to its end: {report.error}")
    elif not report.whole:
        tool.say_error(prog, "Not everything is whole")
    return 0 if report.whole else 1


def _facts(
    report: Report | None, new_names: dict[str, str], left_out: dict[str, str], notes: list[str]
) -> dict[str, object]:
    """The same as JSON has it. ``report`` None: there was nothing to be restored."""
    verdicts = report.all if report is not None else []
    return {
        "whole": report is not None and report.whole,
        "qubes": [
            {"name": one.name, "verdict": one.state, "restored_as": new_names.get(one.name)
             if one.state == "whole" else None, "why": one.why}
            for one in verdicts
        ],
        "left_out": left_out, "notes": notes, "error": report.error if report is not None else "",
    }  # fmt: skip


def _restored_as(verdict: Verdict, new_names: dict[str, str]) -> str:
    return new_names.get(verdict.name, "-") if verdict.state == "whole" else "-"
