"""What qvm-create and qvm-clone have in common: pools and properties on the command line."""

from __future__ import annotations

import argparse

from casemate.cli.tool import UsageError


def pool_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say where volumes shall lie."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-P", dest="one_pool", metavar="POOL", help="pool for all volumes of the qube")
    where.add_argument("-p", "--pool", action="append", default=[], metavar="VOLUME=POOL", help="pool for one volume")


def pools(args: argparse.Namespace) -> dict[str, str]:
    """Pools by volume; that under ``""`` is for all."""
    if args.one_pool:
        return {"": args.one_pool}
    found = {}
    for text in args.pool:
        left, mark, right = text.partition("=")
        if not mark:  # the older form is POOL:VOLUME
            right, mark, left = text.partition(":")
        if not left or not right:
            raise UsageError(f"Not VOLUME=POOL: {text!r}")
        found[left] = right
    return found


def properties(texts: list[str]) -> dict[str, str]:
    """Properties from ``NAME=VALUE`` arguments."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"Not NAME=VALUE: {text!r}")
        found[name] = value
    return found
