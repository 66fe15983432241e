"""qvm-restart: stop qubes and start them again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.progress import Waiting
from casemate.cli.qvm_shutdown import Shutdown
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, NotFoundError, NotHaltedError, NotStartedError

PROG = "qvm-restart"
_DOWN = ("Halted", "NA")
FAILED = 75
"""Exit status when any of them could not be stopped, or not be started again."""


def _passing(qubes: Qubes, names: list[str]) -> set[str]:
    """Those that remove themselves when they stop: a restart would lose them."""
    found = qubes.inventory(["auto_cleanup"], qubes=names)
    return {e["name"] for e in found if e.get("properties", {}).get("auto_cleanup", {}).get("value") == "True"}


def _kill(qubes: Qubes, name: str) -> None:
    try:
        qubes.call("admin.vm.Kill", "", name)
    except NotStartedError:
        pass


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    chosen = [qube for qube in tool.choose(args, qubes.listed()) if qube.name != ADMIN or not args.all]
    passing = _passing(qubes, [qube.name for qube in chosen])
    if args.all:
        chosen = [qube for qube in chosen if qube.name not in passing]
    elif wrong := [qube.name for qube in chosen if qube.name == ADMIN or qube.name in passing]:
        raise tool.UsageError(f"these cannot be restarted: {', '.join(wrong)}")
    names = [qube.name for qube in chosen if qube.state not in _DOWN]
    status = 0
    if args.kill:
        status = tool.each(PROG, names, lambda name: _kill(qubes, name))
    elif names:
        options = argparse.Namespace(force=args.force or args.all, wait=True, timeout=None, dry_run=False, quiet=True)
        shutdown = Shutdown(options, qubes)
        shutdown.wait(names)
        status = int(shutdown.failed)
    down = {qube.name for qube in qubes.listed() if qube.state in _DOWN}
    again = [qube.name for qube in chosen if qube.name in down and (args.start or qube.name in names)]
    return FAILED if tool.each(PROG, again, lambda name: _start(qubes, name, args.quiet)) or status else 0


def _start(qubes: Qubes, name: str, quiet: bool) -> None:
    try:
        with Waiting(f"starting {name}", quiet):
            qubes.call("admin.vm.Start", "", name)
    except NotHaltedError:
        pass  # another that needs its network has started it
    except NotFoundError:
        raise CasemateError(f"{name} is gone") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 75 when one of them could not be stopped or started again."""
    parser = tool.Parser(PROG, "Stop running qubes and start them again.")
    parser.many_qubes()
    parser.add_argument("-f", "--force", action="store_true", help="also qubes that provide network to running ones")
    parser.add_argument("-k", "--kill", action="store_true", help="end their machines instead of asking them to stop")
    parser.add_argument("-s", "--start", action="store_true", help="start also those that do not run")
    return tool.run(parser, _body, argv)
