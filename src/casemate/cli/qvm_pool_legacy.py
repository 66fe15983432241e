"""qvm-pool-legacy: qvm-pool with the options that it had before it had commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import qvm_pool, tool

PROG = "qvm-pool-legacy"


def words(args: argparse.Namespace) -> list[str]:
    """What qvm-pool would be told."""
    options = ["-o", args.option] if args.option else []
    if args.info:
        return ["info", args.info]
    if args.add:
        return ["add", *options, *args.add]
    if args.remove:
        return ["remove", args.remove]
    if args.set:
        return ["set", *options, args.set]
    return ["drivers"] if args.drivers else ["list"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show and change storage pools; qvm-pool does the same with commands.")
    parser.add_argument("-o", dest="option", metavar="NAME=VALUE,...", help="options of the driver")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-l", "--list", action="store_true", help="list the pools (this is the default)")
    what.add_argument("-i", "--info", metavar="POOL", help="show how a pool is configured, and its room")
    what.add_argument("-a", "--add", nargs=2, metavar=("POOL", "DRIVER"), help="add a pool")
    what.add_argument("-r", "--remove", metavar="POOL", help="remove a pool in which no volume lies")
    what.add_argument("-s", "--set", metavar="POOL", help="change options of a pool")
    what.add_argument("--help-drivers", dest="drivers", action="store_true", help="list the drivers and their options")
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return qvm_pool.main(words(args))
