"""qvm-shutdown: ask qubes to stop."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.progress import Waiting
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, InUseError, NotFoundError, NotStartedError

PROG = "qvm-shutdown"
DEFAULT_TIMEOUT = 60.0


class Shutdown:
    """Stops some qubes: those that others need for their network come after those others."""

    def __init__(self, args: argparse.Namespace, qubes: Qubes) -> None:
        self.args = args
        self.qubes = qubes
        self.failed = False

    def ask(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Ask all to stop; those that are stopping now, and those that others still need."""
        stopping, needed = [], []
        for name in names:
            try:
                if not self.args.dry_run:
                    self.qubes.call("admin.vm.Shutdown", "force" if self.args.force else "", name)
                stopping.append(name)
            except (NotStartedError, NotFoundError):
                pass  # it has stopped by itself, or was a disposable that is gone
            except InUseError as error:
                if not self.args.wait or len(names) == 1:
                    self.fail(error)
                else:
                    needed.append(name)
            except CasemateError as error:
                self.fail(error)
        return stopping, needed

    def fail(self, error: CasemateError) -> None:
        """Report, and go on with the others."""
        tool.say_error(PROG, error)
        self.failed = True

    def timeout(self, names: list[str]) -> float:
        """How long to wait: what was asked for, else the longest that any of the qubes may take."""
        if self.args.timeout is not None:
            return float(self.args.timeout)
        try:
            found = self.qubes.inventory(["shutdown_timeout"], qubes=names)
            return max(float(entry["properties"]["shutdown_timeout"]["value"]) for entry in found)
        except (CasemateError, ValueError, KeyError):
            return DEFAULT_TIMEOUT

    def wait(self, names: list[str]) -> None:
        """Ask and wait, round by round; kill what has not stopped in time."""
        with self.qubes.transport.events() as events:
            stopping, needed = self.ask(names)
            while stopping:
                deadline = time.monotonic() + self.timeout(stopping)
                left = self._halting(stopping)
                while left:
                    try:
                        event = events.next(max(0.0, deadline - time.monotonic()))
                    except TimeoutError:
                        break
                    if event.name == "domain-shutdown":
                        left.discard(event.subject)
                    elif event.name == "domain-delete":
                        left.discard(event.details.get("vm", ""))
                self._kill(sorted(left))
                if not needed:
                    return
                again = needed
                stopping, needed = self.ask(again)
                if not stopping and needed:
                    self.args.force = True  # what still needs them was not to be stopped: say so by the refusal
                    break
        for name in needed:
            self.fail(InUseError(f"{name} provides network to running qubes; --force shuts it down all the same"))

    def _halting(self, names: list[str]) -> set[str]:
        running = {qube.name for qube in self.qubes.listed() if qube.state not in ("Halted", "NA")}
        return set(names) & running

    def _kill(self, names: list[str]) -> None:
        for name in names:
            if not self.args.quiet:
                sys.stderr.write(f"{PROG}: {name} did not stop in time, its machine is ended\n")
            try:
                if not self.args.dry_run:
                    self.qubes.call("admin.vm.Kill", "", name)
            except (NotStartedError, NotFoundError):
                pass
            except CasemateError as error:
                self.fail(error)


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    chosen = tool.choose(args, qubes.listed())
    if args.all:
        args.force = True
    names = [qube.name for qube in chosen if not args.all or qube.state not in ("Halted", "NA")]
    shutdown = Shutdown(args, qubes)
    if args.wait and not args.dry_run:
        with Waiting(f"waiting for {' '.join(names)}", args.quiet):
            shutdown.wait(names)
    else:
        shutdown.ask(names)
    return 1 if shutdown.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; a qube that is halted already is no error."""
    parser = tool.Parser(PROG, "Ask qubes to stop.")
    parser.many_qubes()
    parser.add_argument("--wait", action="store_true", help="wait until they have stopped")
    parser.add_argument("--timeout", type=float, help="with --wait: seconds after which a qube is killed")
    parser.add_argument("--force", action="store_true", help="also qubes that provide network to running ones")
    parser.add_argument("--dry-run", action="store_true", help="only check that the qubes exist")
    return tool.run(parser, _body, argv)
