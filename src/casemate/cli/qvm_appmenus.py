"""qvm-appmenus: the entries of a qube's menus, and which of them a person wants to see.

This host draws no menus itself; whoever does, reads them here. The options that write menus to a desktop are taken,
for programs that call them, and do nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import FeatureNotFoundError
from casemate.wire.menus import MenuEntry, parse_lines

PROG = "qvm-appmenus"
CHOSEN = "menu-items"
"""The feature with the files of the entries to be shown, between blanks."""


def _line(entry: MenuEntry, fields: Sequence[str]) -> str:
    known = {"name": entry.name, "comment": entry.comment, "icon": entry.icon, "categories": entry.categories}
    return "|".join([f"{entry.ident}.desktop", *(known.get(field.lower(), "") for field in fields)])


def _of(args: argparse.Namespace, qubes: Qubes, name: str) -> None:
    if args.set_whitelist is not None:
        text = sys.stdin.read() if args.set_whitelist == "-" else Path(args.set_whitelist).read_text("utf-8")
        qubes.call("admin.vm.feature.Set", CHOSEN, name, " ".join(text.split()).encode("ascii", "replace"))
    elif args.get_available:
        for entry in parse_lines(qubes.call("admin.casemate.Menus", "", name)):
            line = _line(entry, args.fields.split(",")) if args.fields else f"{entry.ident}.desktop - {entry.name}"
            sys.stdout.write(f"{line}\n")
    elif args.get_whitelist:
        try:
            chosen = qubes.call("admin.vm.feature.Get", CHOSEN, name)
        except FeatureNotFoundError:
            chosen = ""
        sys.stdout.write("".join(f"{word}\n" for word in chosen.split()))


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    chosen = tool.choose(args, qubes.listed())
    return tool.each(PROG, [qube.name for qube in chosen], lambda name: _of(args, qubes, name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show the entries of a qube's menus, or choose which are to be seen.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--get-available", action="store_true", help="all entries: FILE - NAME")
    what.add_argument("--get-whitelist", action="store_true", help="the files of those to be seen")
    what.add_argument("--set-whitelist", metavar="FILE", help="replace these; - reads them from standard input")
    for option in ("--init", "--create", "--update", "--remove", "--force"):
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--fields", metavar="FIELD,...", help="with --get-available: FILE and these, between |")
    parser.add_argument("--i-understand-format-is-unstable", action="store_true", help=argparse.SUPPRESS)
    parser.many_qubes()
    return tool.run(parser, _body, argv)
