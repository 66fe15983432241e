"""Joins a socket and a stream of a channel: bytes of one are the bytes of the other."""

from __future__ import annotations

import os
import socket
from collections import deque

from casemate.streams.channel import Stream, StreamHandler
from casemate.streams.loop import HANGUP, READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 65536
TAIL = 12


class Splice(StreamHandler):
    """Owns the socket; closes it when both directions have ended or either side is gone."""

    def __init__(
        self, loop: Loop, sock: socket.socket, stream: Stream, on_done: Callable[[Splice], None] | None = None
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._stream = stream
        self._on_done = on_done
        self._waiting: deque[memoryview | bytes] = deque()
        self._read_open = True
        self._write_open = True
        self._peer_eof = False
        self._done = False
        self._mask = 0
        self.tail = b""
        """The last bytes that were read from the socket: of a call, the message with its exit code."""
        sock.setblocking(False)
        stream.handler = self
        self._rewatch()

    def _rewatch(self) -> None:
        if self._done:
            return
        mask = HANGUP  # told in any case; says that the socket is watched even when nothing is wanted of it
        if self._read_open and self._stream.room() > 0:
            mask |= READ
        if self._waiting:
            mask |= WRITE
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self._fd, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._drain()
        if mask & READ and not self._done:
            self._fill()
        elif mask & HANGUP and not mask & READ and not self._done:
            self._stream.abort()
            self._finish()
            return
        self._rewatch()

    def _fill(self) -> None:
        room = min(self._stream.room(), CHUNK)
        if room <= 0 or not self._read_open:
            return
        try:
            data = os.read(self._fd, room)
        except BlockingIOError:
            return
        except OSError:
            self._stream.abort()
            self._finish()
            return
        if data:
            self.tail = data[-TAIL:] if len(data) >= TAIL else (self.tail + data)[-TAIL:]
            self._stream.write(data)
        else:
            self._read_open = False
            self._stream.eof()
            self._check()

    def _drain(self) -> None:
        while self._waiting:
            piece = self._waiting[0]
            try:
                count = os.write(self._fd, piece)
            except BlockingIOError:
                break
            except OSError:
                # Nobody reads there any more: say so to the peer, and go no further.
                self._stream.abort()
                self._finish()
                return
            self._stream.consumed(count)
            if count < len(piece):
                self._waiting[0] = memoryview(piece)[count:]
                break
            self._waiting.popleft()
        if not self._waiting and self._peer_eof:
            self._close_write()

    def _close_write(self) -> None:
        if self._write_open:
            self._write_open = False
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        self._check()

    def _check(self) -> None:
        if not self._read_open and not self._write_open:
            self._finish()

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            self._loop.forget(self._fd)
            self._sock.close()
            self._waiting.clear()
            if self._on_done is not None:
                self._on_done(self)

    def on_data(self, data: bytes | memoryview) -> None:
        if self._done:
            return
        if self._waiting:
            self._waiting.append(bytes(data))
            return
        self._waiting.append(memoryview(data))
        self._drain()
        if self._waiting:
            self._waiting[0] = bytes(self._waiting[0])  # the view is good no longer than this call
        self._rewatch()

    def on_eof(self) -> None:
        self._peer_eof = True
        if not self._waiting and not self._done:
            self._close_write()
        self._rewatch()

    def on_room(self) -> None:
        self._rewatch()

    def on_abort(self) -> None:
        if not self._done and self._waiting and self._write_open:
            # What came before the end still belongs to the reader; deliver what it takes at once.
            try:
                for piece in self._waiting:
                    if os.write(self._fd, piece) < len(piece):
                        break
            except OSError:
                pass
        self._finish()
