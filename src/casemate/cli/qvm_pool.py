"""qvm-pool: show and change storage pools."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import json_output, tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError

PROG = "qvm-pool"


def _info(qubes: Qubes, pool: str) -> dict[str, str]:
    lines = qubes.call("admin.pool.Info", pool).split("\n")
    return {key: text for key, found, text in (line.partition("=") for line in lines) if found}


def _show(args: argparse.Namespace, rows: list[list[str]], data: object) -> int:
    if json_output.wanted(args):
        return json_output.write(data)
    sys.stdout.write(table(rows))
    return 0


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    found = [_info(qubes, name) for name in qubes.call("admin.pool.List").split()]
    return _show(args, [["NAME", "DRIVER"], *([pool["name"], pool["driver"]] for pool in found)], found)


def _info_of(args: argparse.Namespace, qubes: Qubes) -> int:
    found = _info(qubes, args.POOL)
    rows = [[key, text] for key, text in sorted(found.items(), key=lambda pair: (pair[0] != "name", pair))]
    return _show(args, rows, found)


def _options(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in ",".join(words).split(","):
        key, equals, text = word.partition("=")
        if not equals:
            raise tool.UsageError(f"not understood: {word!r}; options are written NAME=VALUE")
        found[key] = text
    return found


def _add(args: argparse.Namespace, qubes: Qubes) -> int:
    options = _options(args.option) if args.option else {}
    payload = "".join(f"{key}={text}\n" for key, text in {"name": args.POOL, **options}.items())
    qubes.call("admin.pool.Add", args.DRIVER, payload=payload)
    return 0


def _remove(args: argparse.Namespace, qubes: Qubes) -> int:
    return tool.each(PROG, args.POOL, lambda name: qubes.call("admin.pool.Remove", name))


def _set(args: argparse.Namespace, qubes: Qubes) -> int:
    driver = _info(qubes, args.POOL)["driver"]
    known = _driver_options(qubes).get(driver, [])
    for key, text in _options(args.option).items():
        if key not in known:
            raise CasemateError(f"driver {driver} of pool {args.POOL} has no option {key!r}; it has {', '.join(known)}")
        qubes.call(f"admin.pool.Set.{key}", args.POOL, payload=text)
    return 0


def _driver_options(qubes: Qubes) -> dict[str, list[str]]:
    """The storage drivers of the host, each with the names of its options."""
    lines = (line.split(" ") for line in qubes.call("admin.pool.ListDrivers").splitlines())
    return {driver: options for driver, *options in lines}


def _drivers(args: argparse.Namespace, qubes: Qubes) -> int:
    found = _driver_options(qubes)
    rows = [["DRIVER", "OPTIONS"], *([driver, ", ".join(options)] for driver, options in found.items())]
    return _show(args, rows, found)


_LEGACY = ("-l", "--list", "-i", "--info", "-a", "--add", "-r", "--remove", "-s", "--set", "--help-drivers")
"""Options from before there were commands; a command line with one of them is qvm-pool-legacy's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.partition("=")[0] in _LEGACY for word in words):
        from casemate.cli import qvm_pool_legacy

        return qvm_pool_legacy.main(words)
    parser = tool.Parser(PROG, "Show and change storage pools.")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="how to show what was asked for")
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=tool.Subparser)
    show = commands.add_parser("list", aliases=["ls", "l"], help="list the pools (this is the default)")
    show.set_defaults(action=_list)
    info = commands.add_parser("info", aliases=["i"], help="show how a pool is configured, and its room")
    info.add_argument("POOL")
    info.set_defaults(action=_info_of)
    add = commands.add_parser("add", aliases=["a"], help="add a pool")
    add.add_argument("POOL")
    add.add_argument("DRIVER")
    add.add_argument("-o", "--option", action="append", metavar="NAME=VALUE", help="an option of the driver")
    add.set_defaults(action=_add)
    remove = commands.add_parser("remove", aliases=["rm", "r"], help="remove pools in which no volume lies")
    remove.add_argument("POOL", nargs="+")
    remove.set_defaults(action=_remove)
    change = commands.add_parser("set", aliases=["s"], help="change options of a pool")
    change.add_argument("POOL")
    change.add_argument("-o", "--option", action="append", metavar="NAME=VALUE", required=True, help="a new value")
    change.set_defaults(action=_set)
    drivers = commands.add_parser("drivers", aliases=["d"], help="list the drivers and their options")
    drivers.set_defaults(action=_drivers)
    json_output.option(parser, show, info, drivers)
    parser.set_defaults(action=_list)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, words)
