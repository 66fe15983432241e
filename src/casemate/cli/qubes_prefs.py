"""qubes-prefs: show and change the global properties."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import prefs, tool
from casemate.client.qubes import Qubes

PROG = "qubes-prefs"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show and change the global properties.")
    prefs.arguments(parser)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        return prefs.run(args, qubes, None, parser)

    return tool.run(parser, body, argv)
