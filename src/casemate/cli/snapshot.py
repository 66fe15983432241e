"""``casemate snapshot``: running qubes as they were, kept under names; disposables go on from them."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from casemate.cli import json_output, tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.errors import printable
from casemate.wire.images import Snapshot, parse_lines


def add_to(commands: Any) -> None:
    """Add the command ``snapshot``."""
    snapshot = commands.add_parser("snapshot", help="keep a running qube as it is, and go on from it later")
    verbs = snapshot.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=tool.Subparser)
    take = verbs.add_parser("take", help="keep a running qube as it is now, with its memory, programs and files")
    take.add_argument("QUBE", help="a disposable, or a template for disposables, that runs")
    take.add_argument("NAME", help="what the snapshot is to be called")
    take.set_defaults(body=_take)
    show = verbs.add_parser("list", help="the snapshots that there are")
    json_output.option(show)
    show.set_defaults(body=_list)
    resume = verbs.add_parser("resume", help="make disposables that go on from a snapshot")
    resume.add_argument("NAME", help="as list shows it")
    resume.add_argument("-n", "--number", type=int, default=1, help="how many (default: 1)")
    resume.set_defaults(body=_resume)
    drop = verbs.add_parser("drop", help="remove a snapshot; what went on from it runs on")
    drop.add_argument("NAME", help="as list shows it")
    drop.set_defaults(body=_drop)


def _take(args: argparse.Namespace, qubes: Qubes) -> int:
    qubes.call("admin.casemate.vm.Snapshot", args.NAME, args.QUBE)
    return 0


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    found = parse_lines(Snapshot, qubes.call("admin.casemate.snapshot.List"))
    if json_output.wanted(args):
        return json_output.write([asdict(one) for one in found])
    rows = [["NAME", "QUBE", "TEMPLATE", "MADE", "MEMORY"]]
    for one in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.made))
        rows.append([printable(one.name), printable(one.qube), printable(one.base), made, f"{one.bytes >> 20} MiB"])
    print(table(rows), end="")
    return 0


def _resume(args: argparse.Namespace, qubes: Qubes) -> int:
    number = str(args.number).encode()
    for name in qubes.call("admin.casemate.snapshot.Resume", args.NAME, payload=number).split():
        print(printable(name))
    return 0


def _drop(args: argparse.Namespace, qubes: Qubes) -> int:
    qubes.call("admin.casemate.snapshot.Drop", args.NAME)
    return 0
