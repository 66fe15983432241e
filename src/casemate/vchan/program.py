"""What the programs of this package have in common: descriptors, a log that cannot block, a loop that goes on."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
import traceback

from casemate.streams.loop import Loop
from casemate.wire.errors import printable

_PAUSE = 0.05
LINES = 50
"""Lines of the log in a second; what a peer can have us write is no way to fill a disk."""
_LINE = 400


class Log:
    """Writes lines to stderr, when they can be written at once and are not too many; says how many were left out."""

    def __init__(self, name: str, fd: int = 2) -> None:
        self._name = name
        self._fd = fd
        self._second = 0.0
        self._written = 0
        self._left_out = 0

    def __call__(self, text: str) -> None:
        """One line."""
        now = time.monotonic()
        if now - self._second >= 1:
            self._second, self._written = now, 0
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if self._written >= LINES or not any(mask & select.POLLOUT for _fd, mask in poll.poll(0)):
            self._left_out += 1
            return
        lines = [f"{self._left_out} lines were left out", text] if self._left_out else [text]
        self._left_out = 0
        self._written += 1
        data = "".join(f"{self._name}: {printable(line, _LINE)}\n" for line in lines)
        try:
            os.write(self._fd, data.encode("ascii", "backslashreplace"))
        except OSError:
            pass  # nobody reads it


def many_files() -> None:
    """As many descriptors as the system allows."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(loop: Loop, log: Log) -> None:
    """Run until SIGTERM or SIGINT. An error that nobody foresaw ends what it came from, not all that we serve."""
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
            for line in traceback.format_exc().splitlines():
                log(line)
            time.sleep(_PAUSE)  # one that comes again and again must not fill the log at once
