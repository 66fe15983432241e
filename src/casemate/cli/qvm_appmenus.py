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
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, FeatureNotFoundError
from casemate.wire.menus import MenuEntry, parse_lines

PROG = "qvm-appmenus"
CHOSEN = "menu-items"
"""The feature with the files of the entries to be shown, between blanks."""
DEFAULT = "default-menu-items"
"""The same of a template, for qubes that will be based on it."""
_DESKTOP = "no menus are written to a desktop of this host; whoever draws menus reads them by --get-available"


def _line(entry: MenuEntry, fields: Sequence[str]) -> str:
    """FILE and the fields that were asked for; one that is not kept of a qube's menus is empty."""
    known = {"name": entry.name, "comment": entry.comment, "icon": entry.icon, "categories": entry.categories}
    return "|".join([f"{entry.ident}.desktop", *(known.get(field.lower(), "") for field in fields)])


def _read(path: str) -> str:
    """The words of a file, or of standard input (``-``), between single blanks."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except OSError as error:
        raise CasemateError(f"{path}: {error.strerror}") from None
    return " ".join(text.split())


def _feature(qubes: Qubes, name: str, feature: str) -> list[str]:
    try:
        return qubes.call("admin.vm.feature.Get", feature, name).split()
    except FeatureNotFoundError:
        return []


def _of(args: argparse.Namespace, qubes: Qubes, name: str, lists: dict[str, str]) -> None:
    """All that the command line asks for, in upstream's order: what is chosen from, read, written, then shown."""
    if args.init and args.source and not _feature(qubes, name, CHOSEN):
        default = _feature(qubes, args.source, DEFAULT)
        if default:
            qubes.call("admin.vm.feature.Set", CHOSEN, name, " ".join(default))
    if args.get_whitelist:
        sys.stdout.write("".join(f"{word}\n" for word in _feature(qubes, name, CHOSEN)))
    if DEFAULT in lists:
        qubes.call("admin.vm.feature.Set", DEFAULT, name, lists[DEFAULT].encode("ascii", "replace"))
    if args.get_default_whitelist:
        sys.stdout.write("".join(f"{word}\n" for word in _feature(qubes, name, DEFAULT)))
    if CHOSEN in lists:
        qubes.call("admin.vm.feature.Set", CHOSEN, name, lists[CHOSEN].encode("ascii", "replace"))
    if args.get_available:
        for entry in parse_lines(qubes.call("admin.casemate.Menus", "", args.template or name)):
            fields = ["name", *args.fields] if args.fields else args.only and args.only.split(",")
            line = _line(entry, fields) if fields else f"{entry.ident}.desktop - {entry.name}"
            sys.stdout.write(f"{line}\n")


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.remove:
        return 0  # upstream's library says this of qubes that are gone; features go with their qube
    listed = qubes.listed()
    chosen = [qube.name for qube in tool.choose(args, listed) if qube.name != ADMIN]
    for option in (args.template, args.source):
        tool.named([option] if option else [], [qube.name for qube in listed])
    paths = ((CHOSEN, args.set_whitelist), (DEFAULT, args.set_default_whitelist))
    lists = {feature: _read(path) for feature, path in paths if path is not None}
    return tool.each(PROG, chosen, lambda name: _of(args, qubes, name, lists))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show the entries of qubes' menus, or choose which are to be seen.")
    parser.add_argument("--get-available", action="store_true", help="all entries: FILE - NAME")
    parser.add_argument("--file-field", action="append", dest="fields", metavar="FIELD",
                        help="with --get-available: FILE|NAME and this (Comment, Icon); can be repeated")  # fmt: skip
    parser.add_argument("--fields", dest="only", metavar="FIELD,...", help="with --get-available: FILE and only these")
    parser.add_argument("--template", metavar="VMNAME", help="with --get-available: the entries of this qube instead")
    parser.add_argument("--get-whitelist", action="store_true", help="the files of those to be seen")
    parser.add_argument("--get-default-whitelist", action="store_true",
                        help="the files of those to be seen of new qubes that are based on it")  # fmt: skip
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--set-whitelist", metavar="FILE", help="replace those to be seen; - reads standard input")
    given.add_argument("--set-default-whitelist", metavar="FILE", help="the same for new qubes that are based on it")
    parser.add_argument("--init", action="store_true", help="begin with what --source gives to new qubes")
    parser.add_argument("--source", metavar="VMNAME", help="with --init: the qube that it is made from")
    parser.add_argument("--remove", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--update", action="store_true", help=f"nothing: {_DESKTOP}")
    for option in ("--create", "--force", "--i-understand-format-is-unstable"):
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    parser.many_qubes()
    return tool.run(parser, _body, argv)
