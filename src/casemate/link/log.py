"""What a link says about its qube: lines of printable text on stderr, a flood of them cut."""

from __future__ import annotations

import os
import stat
import sys
import time

from casemate.wire.errors import printable

LOG_LINES_PER_SECOND = 20
"""Limit of a qube's channel (a second): lines that a link logs. What is beyond is counted and left out: what a qube can
have us write must not fill a disk."""

LOG_BYTES = 1 << 20
"""Limit of a qube's channel (bytes): a link's log. A full one begins anew: what a qube does now matters most."""


class Log:
    """Writes one line for each fact. Made by the link for all of its life."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._second = 0
        self._lines = 0

    def __call__(self, text: str) -> None:
        now = int(time.time())
        if now != self._second:
            if self._lines > LOG_LINES_PER_SECOND:
                self._write(f"suppressed {self._lines - LOG_LINES_PER_SECOND} lines")
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines <= LOG_LINES_PER_SECOND:
            self._write(printable(text))

    def _write(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._name}: {text}\n"
        if self._size() + len(line) > LOG_BYTES:
            os.ftruncate(2, 0)  # opened for appending: what comes next begins the file
            line = f"{self._name}: the log was full, what it had is gone\n{line}"
        sys.stderr.write(line)
        sys.stderr.flush()

    @staticmethod
    def _size() -> int:
        """Bytes of the log so far; 0 where it is no file, as on a terminal."""
        status = os.fstat(2)
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
