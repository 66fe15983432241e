"""qvm-unpause: let paused qubes go on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.qubes import Qubes

PROG = "qvm-unpause"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    names = [qube.name for qube in tool.choose(args, qubes.listed()) if not args.all or qube.state == "Paused"]
    method = "admin.vm.Unpause"
    return tool.each(PROG, names, lambda name: qubes.call(method, "", name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is 1 if any of the qubes refused."""
    parser = tool.Parser(PROG, "Let paused qubes go on.")
    parser.many_qubes()
    return tool.run(parser, _body, argv)
