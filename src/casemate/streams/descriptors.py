"""A unix socket that behaves like a stream of a channel: the same call can be served over either."""

from __future__ import annotations

import os
import socket
from collections import deque

from casemate.streams.channel import IN_PLACE_AFTER, IN_PLACE_BEFORE, StreamHandler
from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.wire.mux import LEAST_ROOM

WINDOW = 256 * 1024


class SocketStream:
    """Owns the socket. What is not consumed is not read beyond WINDOW bytes; what the peer does not read stays here
    up to WINDOW bytes, then there is no room."""

    def __init__(self, loop: Loop, sock: socket.socket, handler: StreamHandler | None = None) -> None:
        self.handler = handler if handler is not None else StreamHandler()
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._output: deque[bytes | memoryview] = deque()
        self._pending = 0
        self._unconsumed = 0
        self._read_open = True
        self._eof_wanted = False
        self._full = False
        self._closed = False
        self._mask = 0
        sock.setblocking(False)
        loop.later(0, self._rewatch)

    def room(self) -> int:
        """Bytes that may be written now."""
        room = 0 if self._closed or self._eof_wanted else WINDOW - self._pending
        if room < LEAST_ROOM:
            self._full = True
            return 0
        return room

    def write(self, data: bytes | memoryview) -> None:
        """Send ``data``."""
        if not self._closed:
            self._output.append(data)
            self._pending += len(data)
            self._flush()

    def write_in_place(self, buffer: memoryview) -> None:
        """Send what lies in a buffer with the room that a channel's frame needs around it."""
        self.write(bytes(buffer[IN_PLACE_BEFORE:-IN_PLACE_AFTER]))

    def consumed(self, count: int) -> None:
        """``count`` bytes handed to ``on_data`` have gone on."""
        self._unconsumed -= count
        self._rewatch()

    def eof(self) -> None:
        """Send no more."""
        self._eof_wanted = True
        self._flush()

    def abort(self) -> None:
        """Close at once."""
        self._close()

    def _rewatch(self) -> None:
        if self._closed:
            return
        mask = HANGUP
        if self._read_open and self._unconsumed < WINDOW:
            mask |= READ
        if self._output:
            mask |= WRITE
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self._fd, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & READ and not self._closed:
            self._read()
        elif mask & HANGUP and not self._closed:
            self._close()
            self.handler.on_abort()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            self.handler.on_abort()
            return
        if data:
            self._unconsumed += len(data)
            self.handler.on_data(data)
        else:
            self._read_open = False
            self.handler.on_eof()
        self._rewatch()

    def _flush(self) -> None:
        while self._output and not self._closed:
            try:
                count = os.write(self._fd, self._output[0])
            except BlockingIOError:
                break
            except OSError:
                self._close()
                self.handler.on_abort()
                return
            self._pending -= count
            if count < len(self._output[0]):
                self._output[0] = memoryview(self._output[0])[count:]
            else:
                self._output.popleft()
        if self._closed:
            return
        if not self._output and self._eof_wanted:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            if not self._read_open:
                self._close()
                return
        self._rewatch()
        if self._full and self._pending < WINDOW // 2 and not self._eof_wanted:
            self._full = False
            self.handler.on_room()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.forget(self._fd)
            self._sock.close()
            self._output.clear()
