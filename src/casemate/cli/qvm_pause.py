"""qvm-pause: stop the time of running qubes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.qubes import Qubes

PROG = "qvm-pause"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    names = [qube.name for qube in tool.choose(args, qubes.listed()) if not args.all or qube.state == "Running"]
    method = "admin.vm.Suspend" if args.suspend else "admin.vm.Pause"
    return tool.each(PROG, names, lambda name: qubes.call(method, "", name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is 1 if any of the qubes refused."""
    parser = tool.Parser(PROG, "Stop the time of running qubes.")
    parser.many_qubes()
    parser.add_argument("-S", "--suspend", action="store_true", help="put the guests to sleep instead")
    return tool.run(parser, _body, argv)
