"""What the programs of this package have in common: many descriptors, a loop that goes on, an end by a signal."""

from __future__ import annotations

import resource
import signal
import sys
import traceback

from casemate.pump.loop import Loop

_PAUSE = 0.05


def many_files() -> None:
    """As many descriptors as the system allows."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(loop: Loop) -> None:
    """Run until SIGTERM or SIGINT. An error that nobody foresaw ends what it came from, not all that we serve."""
    import time

    ended = False

    def end(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True
        loop.stop()

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    while not ended:
        try:
            loop.run()
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            time.sleep(_PAUSE)  # one that comes again and again must not fill the log at once
