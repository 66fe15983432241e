"""qvm-kill: end the machines of qubes at once, as if their power was cut."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import NotStartedError

PROG = "qvm-kill"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    names = [
        qube.name for qube in tool.choose(args, qubes.listed()) if not args.all or qube.state not in ("Halted", "NA")
    ]
    return tool.each(PROG, names, lambda name: _kill(qubes, name))


def _kill(qubes: Qubes, name: str) -> None:
    try:
        qubes.call("admin.vm.Kill", "", name)
    except NotStartedError:
        pass  # it is halted, which is what was asked for


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is 1 if any of the qubes refused."""
    parser = tool.Parser(PROG, "End the machines of qubes at once, as if their power was cut.")
    parser.many_qubes()
    return tool.run(parser, _body, argv)
