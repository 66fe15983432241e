"""A unix socket that carries qrexec messages: reads them whole and bounded, writes without blocking."""

from __future__ import annotations

import os
import socket

from casemate.streams.half_frame import HalfFrame, configured
from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.wire.errors import ProtocolError
from casemate.wire.qrexec import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Lengths = Callable[[tuple[int, int]], int]
    OnMessage = Callable[[int, bytes], None]

_READ_SIZE = 65536


class MessageSocket:
    """Owns the socket. ``lengths`` says what may come (it may be changed between messages; None: not one byte),
    ``on_message(type, body)`` gets it; ``on_end(why)`` is called once when the peer goes or breaks the rules, never for
    our own ``close``. A message must be complete ``half_seconds`` after its first byte."""

    __slots__ = (
        "_buffer", "_fd", "_half", "_leaving", "_loop", "_mask", "_on_end", "_on_message", "_output", "_sock", "closed",
        "_whole", "lengths",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        lengths: Lengths | None,
        on_message: OnMessage,
        on_end: Callable[[str], None],
        half_seconds: float | None = None,
    ) -> None:
        self._loop = loop
        seconds = configured(os.environ) if half_seconds is None else half_seconds
        self._half = HalfFrame(loop, seconds, lambda: self._end("half a message, and then nothing"))
        self._whole = 0
        self._sock = sock
        self._fd = sock.fileno()
        self.lengths = lengths
        self._on_message = on_message
        self._on_end = on_end
        self._buffer = b""
        self._output = b""
        self._leaving = False
        self.closed = False
        self._mask = READ | HANGUP
        sock.setblocking(False)
        loop.watch(self._fd, self._mask, self._ready)

    @property
    def pending(self) -> int:
        """Bytes that the peer has not taken yet."""
        return len(self._output)

    def send(self, data: bytes) -> None:
        """Send, now or later."""
        if self.closed:
            return
        if self._output:
            self._output += data
            return
        try:
            count = os.write(self._fd, data)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._end(error.strerror or "lost")
            return
        if count < len(data):
            self._output = data[count:]
            self._rewatch()

    def leave(self) -> None:
        """Close when all has been sent; nothing is read any more."""
        if not self._output:
            self.close()
        elif not self.closed:
            self._leaving = True
            self._rewatch()

    def close(self) -> None:
        """Close at once."""
        if not self.closed:
            self.closed = True
            self._half.stop()
            self._loop.unwatch(self._fd)
            self._sock.close()
            self._buffer = self._output = b""

    def _end(self, why: str) -> None:
        if not self.closed:
            self.close()
            self._on_end(why)

    def _rewatch(self) -> None:
        mask = HANGUP | (0 if self._leaving else READ) | (WRITE if self._output else 0)
        if mask != self._mask and not self.closed:
            self._mask = mask
            self._loop.watch(self._fd, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & WRITE and self._output:
            try:
                self._output = self._output[os.write(self._fd, self._output) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._end(error.strerror or "lost")
                return
            if self._leaving and not self._output:
                self.close()
                return
            self._rewatch()
        if self._leaving:
            if mask & HANGUP:
                self._end("closed")
        elif mask & (READ | HANGUP):
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end("cut in a message" if self._buffer else "closed")
            return
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        try:
            while not self.closed:
                if self.lengths is None and at < end:
                    raise ProtocolError("qrexec: bytes where none may come")
                if self.lengths is None or end - at < 8:
                    break
                fields = HEADER.unpack_from(buffer, at)
                upto = at + 8 + self.lengths(fields)
                if upto > end:
                    break
                body = buffer[at + 8 : upto]
                at = upto
                self._whole += 1
                self._on_message(fields[0], body)
        except ProtocolError as error:
            self._end(str(error))
            return
        if not self.closed:
            self._buffer = buffer[at:]
            self._half.read(bool(self._buffer), self._whole)
