"""qvm-tags: show and change the tags of a qube."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import json_output, tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import TagNotFoundError

PROG = "qvm-tags"


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    tags = qubes.tags(args.VMNAME)
    if args.tag is not None:
        if args.tag in tags:
            sys.stdout.write(f"{args.tag}\n")
        return 0 if args.tag in tags else 1
    if json_output.wanted(args):
        return json_output.write(tags)
    sys.stdout.write("".join(f"{tag}\n" for tag in tags))
    return 0


def _add(args: argparse.Namespace, qubes: Qubes) -> int:
    for tag in args.tag:
        qubes.call("admin.vm.tag.Set", tag, args.VMNAME)
    return 0


def _remove(args: argparse.Namespace, qubes: Qubes) -> int:
    for tag in args.tag:
        try:
            qubes.call("admin.vm.tag.Remove", tag, args.VMNAME)
        except TagNotFoundError:
            pass
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; asked for a tag that is not there, its exit status is 1."""
    parser = tool.Parser(PROG, "Show and change the tags of a qube.")
    parser.one_qube()
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=tool.Subparser)
    show = commands.add_parser("list", aliases=["ls", "l"], help="list the tags, or tell whether one is there")
    show.add_argument("tag", nargs="?", metavar="TAG")
    show.set_defaults(action=_list)
    json_output.option(parser, show)
    add = commands.add_parser("add", aliases=["a", "set"], help="put tags on the qube")
    add.add_argument("tag", nargs="+", metavar="TAG")
    add.set_defaults(action=_add)
    remove = commands.add_parser("del", aliases=["d", "unset", "u"], help="take tags off the qube")
    remove.add_argument("tag", nargs="+", metavar="TAG")
    remove.set_defaults(action=_remove)
    parser.set_defaults(action=_list, tag=None)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, argv)
