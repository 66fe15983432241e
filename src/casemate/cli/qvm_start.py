"""qvm-start: start qubes and wait until they can be used."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import NotHaltedError

PROG = "qvm-start"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    chosen = tool.choose(args, qubes.listed())
    skip = args.skip_if_running or args.all

    def start(name: str) -> None:
        state = next(qube.state for qube in chosen if qube.name == name)
        if state not in ("Halted", "NA", "Transient"):
            if skip:
                return
            raise NotHaltedError(f"domain {name} is already running")
        qubes.call("admin.vm.Start", "", name)

    return tool.each(PROG, [qube.name for qube in chosen], start)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is 1 if any of the qubes did not start, or ran already."""
    parser = tool.Parser(PROG, "Start qubes and wait until they can be used.")
    parser.many_qubes()
    parser.add_argument("--skip-if-running", action="store_true", help="a qube that runs already is no error")
    return tool.run(parser, _body, argv)
