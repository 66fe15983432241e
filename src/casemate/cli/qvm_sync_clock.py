"""qvm-sync-clock: set the clocks of running qubes by this host's."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from casemate.calls.caller import run_call
from casemate.cli import tool
from casemate.cli.calling import open_call
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError
from casemate.wire.qrexec import EXIT_NO_SERVICE, Command

PROG = "qvm-sync-clock"
SERVICE = "qubes.SetDateTime"


def _set(qubes: Qubes, name: str) -> None:
    sock = open_call(qubes, name, Command("root", SERVICE, None, ADMIN), False)
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00\n", time.gmtime()).encode()
    status = run_call(sock, None, None, None, now)
    if status == EXIT_NO_SERVICE:
        raise CasemateError(f"{name} has no service {SERVICE}")
    if status:
        raise CasemateError(f"{name}: {SERVICE} ended with status {status}")


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    listed = qubes.listed()
    if not args.VMNAME:
        args.all = True
    names = [q.name for q in tool.choose(args, listed) if q.state == "Running" and q.name != ADMIN]
    return tool.each(PROG, names, lambda name: _set(qubes, name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a clock could not be set."""
    parser = tool.Parser(PROG, "Set the clocks of running qubes (of all, where none is named) by this host's.")
    parser.many_qubes()
    return tool.run(parser, _body, argv)
