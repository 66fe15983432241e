"""qvm-prefs: show and change the properties of a qube."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import prefs, tool
from casemate.client.qubes import Qubes

PROG = "qvm-prefs"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show and change the properties of a qube.")
    parser.one_qube()
    prefs.arguments(parser)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        return prefs.run(args, qubes, args.VMNAME, parser)

    return tool.run(parser, body, argv)
