"""What a link says about its qube: lines of printable text on stderr, a flood of them cut."""

from __future__ import annotations

import sys
import time

from casemate.wire.errors import printable

LOG_LINES_PER_SECOND = 20
"""Limit of a qube's channel (a second): lines that a link logs. What is beyond is counted and left out: what a qube can
have us write must not fill a disk."""


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
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        sys.stderr.write(f"{stamp} {self._name}: {text}\n")
        sys.stderr.flush()
