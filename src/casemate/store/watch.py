"""Tells when the store's file may have changed: inotify(7) on its directory, as a rename replaces the file itself."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_CLOSE_WRITE, _MOVED_TO = 0x8, 0x80
_EVENT = struct.Struct("iIII")


class Watch:
    """A descriptor that is readable when a file was replaced or written; wait for it in any loop."""

    def __init__(self, path: Path) -> None:
        self._name = os.fsencode(path.name)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _CLOSE_WRITE | _MOVED_TO
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(path.parent), mask) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, os.strerror(number), str(path.parent))

    def fileno(self) -> int:
        """The descriptor."""
        return int(self._fd)

    def changed(self) -> bool:
        """Read all events that wait; whether our file was replaced or written."""
        found = False
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                _watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                # An event of another kind is an overflow of the queue: then ours may be among those that were lost.
                found |= name == self._name or not mask & (_CLOSE_WRITE | _MOVED_TO)
                at += _EVENT.size + length

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
