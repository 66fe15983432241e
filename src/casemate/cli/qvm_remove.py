"""qvm-remove: remove qubes with everything in them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, InUseError

PROG = "qvm-remove"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    names = [qube.name for qube in tool.choose(args, qubes.listed())]
    if ADMIN in names:
        raise CasemateError(f"{ADMIN} cannot be removed")
    if not args.force and names:
        sys.stderr.write("These qubes will be removed with everything in them:\n")
        sys.stdout.write("".join(f"  {name}\n" for name in names))
        if not tool.confirmed("Are you sure?", "Nothing was removed.\n"):
            return 1
    return 1 if _remove(qubes, names) else 0


def _remove(qubes: Qubes, names: list[str]) -> bool:
    """Remove qubes in an order in which none is still used by another of them; whether any is still there."""
    while names:
        used: dict[str, InUseError] = {}
        failed = False
        for name in names:
            try:
                qubes.remove(name)
            except InUseError as error:
                used[name] = error  # perhaps by one that goes in this round
            except CasemateError as error:
                tool.say_error(PROG, error)
                failed = True
        if len(used) == len(names) or failed:
            for reason in used.values():
                tool.say_error(PROG, reason)
            return True
        names = list(used)
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is 1 if any of the qubes is still there."""
    parser = tool.Parser(PROG, "Remove qubes with everything in them.")
    parser.many_qubes()
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")
    return tool.run(parser, _body, argv)
