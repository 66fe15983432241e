"""qvm-sync-clock in a qube: set its clock to the time that ``qubes.GetDate`` of no named qube says.

The policy says whose time that is; as delivered it is this host's, which asks the qube that is set as ``clockvm``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from casemate.wire.clock import MAX_DATE, NANOSECONDS, SERVICE, check_step, parse_date
from casemate.wire.errors import CasemateError

USAGE = """\
usage: qvm-sync-clock [--force]

Sets the clock of this qube (as root) by qubes.GetDate. A step of more than a day needs --force.
"""
CALL = ("qrexec-client-vm", "@default", f"{SERVICE}+{NANOSECONDS}")


def main(argv: list[str]) -> int:
    """0 when the clock was set, 1 when the time was not one or could not be set, 2 for words that are wrong; else the
    exit status of the call."""
    force = argv[1:] == ["--force"]
    if argv[1:] and not force:
        sys.stderr.write(USAGE)
        return 2
    try:
        with subprocess.Popen(CALL, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as call:
            assert call.stdout is not None
            # Only what a date needs is read. A service that says more is cut off when the pipe is closed.
            untrusted = call.stdout.read(MAX_DATE)
            call.stdout.close()
        if call.returncode > 0 and not untrusted:
            sys.stderr.write(f"qvm-sync-clock: {SERVICE} ended with status {call.returncode}\n")
            return call.returncode
        moment = parse_date(untrusted)
        check_step(time.time_ns(), moment, force)
        time.clock_settime_ns(time.CLOCK_REALTIME, moment)
    except CasemateError as error:
        sys.stderr.write(f"qvm-sync-clock: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"qvm-sync-clock: {error.strerror}" + ("" if os.geteuid() == 0 else "; be root") + "\n")
        return 1
    return 0
