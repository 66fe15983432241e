"""qvm-sync-clock: set this host's clock by that of the ``clockvm``, and the clocks of running qubes.

::

    clockvm ── qubes.GetDate ──▶ the time ──▶ this host's clock (as root, and if no time service keeps it)
                                    └───────▶ other running qubes, by qubes.SetDateTime

Without a ``clockvm``, or while it does not run, this host's clock is the time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.calls.caller import run_call
from casemate.cli import tool
from casemate.cli.calling import answer_of, open_call
from casemate.cli.host_clock import HostClock
from casemate.client.qubes import Qubes
from casemate.wire import clock
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError
from casemate.wire.qrexec import EXIT_NO_SERVICE, Command

PROG = "qvm-sync-clock"
SERVICE = "qubes.SetDateTime"
NO_DIFFERENCE = 2_000_000_000
"""Nanoseconds. A call takes up to a second where qubes are emulated, so that less says nothing about a clock."""
ANSWER_SECONDS = 15.0
"""Seconds that the clockvm has to say its time."""
HOST = HostClock()


def _set(qubes: Qubes, name: str, ahead: int) -> None:
    """Set the clock of a qube to what this host's shows plus ``ahead`` nanoseconds."""
    sock = open_call(qubes, name, Command("root", SERVICE, None, ADMIN), False)
    status = run_call(sock, None, None, None, clock.format_date(HOST.now() + ahead, False).encode())
    if status == EXIT_NO_SERVICE:
        raise CasemateError(f"{name} has no service {SERVICE}")
    if status:
        raise CasemateError(f"{name}: {SERVICE} ended with status {status}")


def _ahead(qubes: Qubes, name: str, force: bool) -> int:
    """How many nanoseconds the clock of the clockvm is ahead of this host's; 0 if that is less than can be measured."""
    command = Command("DEFAULT", clock.SERVICE, clock.NANOSECONDS, ADMIN)
    untrusted = answer_of(open_call(qubes, name, command, False), command.service, clock.MAX_DATE, ANSWER_SECONDS)
    try:
        theirs, ours = clock.parse_date(untrusted), HOST.now()
        clock.check_step(ours, theirs, force)
    except CasemateError as error:
        raise clock.ClockError(f"{name}: {error}") from None
    return theirs - ours if abs(theirs - ours) >= NO_DIFFERENCE else 0


def _follow(qubes: Qubes, name: str, force: bool) -> int:
    """Set this host's clock by the clockvm's, if it is ours to set. What is left of the difference, in nanoseconds."""
    ahead = _ahead(qubes, name, force)
    if not ahead:
        return 0
    difference = f"{name}'s clock differs from this host's by {ahead / 1e9:+.1f} s"
    if HOST.is_kept():
        sys.stderr.write(f"{PROG}: {difference}; a time service keeps this host's, so that one counts\n")
        return 0
    if not HOST.is_ours():
        sys.stderr.write(f"{PROG}: {difference}; only root could set this host's\n")
        return ahead
    try:
        HOST.set(HOST.now() + ahead)
    except OSError as error:
        raise clock.ClockError(f"this host's clock cannot be set: {error.strerror}") from None
    return 0


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    listed = qubes.listed()
    if not args.VMNAME:
        args.all = True
    running = {q.name for q in listed if q.state == "Running" and q.name != ADMIN}
    names = [q.name for q in tool.choose(args, listed) if q.name in running]
    clockvm = qubes.call("admin.property.Get", "clockvm").rpartition(" ")[2]
    ahead = 0
    if clockvm in running:
        ahead = _follow(qubes, clockvm, args.force)
    elif clockvm not in ("", ADMIN):
        sys.stderr.write(f"{PROG}: {clockvm}, which knows the time, does not run; this host's clock counts\n")
    return tool.each(PROG, [name for name in names if name != clockvm], lambda name: _set(qubes, name, ahead))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a clock could not be set."""
    parser = tool.Parser(
        PROG,
        "Set the clocks of running qubes (of all, where none is named) by the clock of the qube that the property "
        "clockvm names, and as root this host's; without such a qube by this host's.",
    )
    parser.many_qubes()
    parser.add_argument("--force", action="store_true", help="change the time even by more than a day")
    return tool.run(parser, _body, argv)
