"""The serving end of a call over a socket: the bytes of a fast stream pass from pipe to socket inside the kernel.

Each splice(2) saves two copies of the bytes and their way through this process. It pays for large pieces only, and
needs a pipe and a socket, so a guest's channel cannot have it: there many calls share one port.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios

from casemate.calls.service import Output, ServiceCall
from casemate.streams.pipe_stream import PipeStream
from casemate.wire.qrexec import HEADER, MAX_CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.streams.stream import Stream

LEAST = 16 * 1024
"""Bytes for which splicing pays; fewer are read and written as usual, which takes fewer system calls."""
_COUNT = bytes(4)


def waiting_bytes(fd: int) -> int:
    """Bytes that can be read from a pipe or socket now (FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, _COUNT), sys.byteorder)


class SplicedOutput(Output):
    """Sends what waits in a pipe as one message: its header by a write, its body by splicing."""

    __slots__ = ("_blocks",)

    def __init__(self, call: ServiceCall, stream: Stream, kind: int) -> None:
        super().__init__(call, stream, kind)
        self._blocks = True

    def take(self, fd: int) -> bool:
        count = min(waiting_bytes(fd), self._stream.room() - HEADER.size, MAX_CHUNK)
        if count < LEAST:
            return False
        if self._blocks:
            # The program may itself read from the pipe, through /proc. We must not wait then for what it took.
            self._blocks = False
            os.set_blocking(fd, False)
        try:
            return self._stream.splice_message(HEADER.pack(self.kind, count), fd, count)
        except OSError:
            self.call.fail("another program has read from the service's output")
            return True


class SplicedCall(ServiceCall):
    """A ``ServiceCall`` whose caller is at the other end of a socket of its own."""

    output = SplicedOutput
    _source = -1
    _large = False
    """The last message was worth splicing, so the next may be: its header is read alone, its body is left waiting."""

    def take(self, fd: int) -> bool:
        self._source = fd
        left = self._side.expected
        self._large = self._large if self._side.between else left >= LEAST
        if left < LEAST or not isinstance(self._service, PipeStream):
            return False
        moved = self._service.splice_in(fd, left)
        self._side.passed(moved)
        return moved > 0

    def buffer(self) -> memoryview:
        buffer = super().buffer()
        return buffer[: HEADER.size] if self._large and self._side.between else buffer

    def filled(self, count: int) -> None:
        super().filled(count)
        if self._side.expected >= LEAST and self.room():
            self.take(self._source)  # most likely there: saves a round of the loop
