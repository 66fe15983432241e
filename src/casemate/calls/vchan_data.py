"""A qrexec data channel as a stream of a call: the handshake first, then what ``calls.service`` reads and writes."""

from __future__ import annotations

import os
import socket
from collections import deque

from casemate.streams.channel import IN_PLACE_AFTER, IN_PLACE_BEFORE, StreamHandler
from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.wire import qrexec_control as control
from casemate.wire.errors import ProtocolError
from casemate.wire.mux import LEAST_ROOM
from casemate.wire.qrexec import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 256 * 1024
_INPUT = memoryview(bytearray(128 * 1024))
"""Where what peers send passes through; handlers keep nothing of it."""
_HELLO_SIZE = HEADER.size + 4


class DataStream:
    """Owns the socket. The peer's end of it is the end of the call: a vchan is never half closed.

    There is no room before the peer has said its version. What is not consumed is not read beyond WINDOW bytes; what
    the peer does not read is kept up to WINDOW bytes. After ``eof`` it closes itself when all has been sent.
    ``on_closed`` is called once, whoever closed. ``wait_for_hello``: say our version only when the peer has said its.
    """

    __slots__ = (
        "_closed", "_ended", "_fd", "_full", "_hello", "_loop", "_mask", "_most", "_on_closed", "_output", "_pending",
        "_silent", "_sock", "_unconsumed", "handler",
    )  # fmt: skip

    def __init__(
        self, loop: Loop, sock: socket.socket, on_closed: Callable[[DataStream], None], wait_for_hello: bool = False
    ) -> None:
        self.handler = StreamHandler()
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._on_closed = on_closed
        self._output: deque[bytes | memoryview] = deque()
        self._pending = 0
        self._unconsumed = 0
        self._most = 0
        self._hello: bytes | None = b""
        self._ended = False
        self._full = True
        self._closed = False
        self._mask = 0
        sock.setblocking(False)
        self._silent = wait_for_hello
        if not wait_for_hello:
            self._send(control.hello(control.DATA_VERSION))
        self._rewatch()

    @property
    def closed(self) -> bool:
        """True when it is over."""
        return self._closed

    @property
    def greeted(self) -> bool:
        """True when the peer has said its version."""
        return self._hello is None

    # -- what a handler calls

    def room(self) -> int:
        """Bytes that may be written now; never more than one message of the peer's version."""
        room = 0 if self._closed or self._ended else min(self._most, WINDOW - self._pending)
        if room < LEAST_ROOM:
            self._full = True
            return 0
        return room

    def write(self, data: bytes | memoryview) -> None:
        """Send ``data``."""
        if not self._closed:
            self._send(bytes(data))
            self._rewatch()

    def write_in_place(self, buffer: memoryview) -> None:
        """Send what lies in a buffer with the room that a channel's frame needs around it."""
        if self._closed:
            return
        data = buffer[IN_PLACE_BEFORE:-IN_PLACE_AFTER]
        if not self._output:
            try:
                count = os.write(self._fd, data)
            except BlockingIOError:
                count = 0
            except OSError:
                self._lost()
                return
            if count == len(data):
                return
            data = data[count:]
        self._output.append(bytes(data))
        self._pending += len(data)
        self._rewatch()

    def consumed(self, count: int) -> None:
        """``count`` bytes handed to ``on_data`` have gone on."""
        self._unconsumed -= count
        self._rewatch()

    def eof(self) -> None:
        """Close when all has been sent, and not before the peer has said its version: it may still be about to."""
        self._ended = True
        self._check()

    def abort(self) -> None:
        """Close at once; the handler is not called again."""
        if not self._closed:
            self._closed = True
            self._loop.forget(self._fd)
            self._sock.close()
            self._output.clear()
            self._on_closed(self)

    # -- the socket

    def _check(self) -> None:
        if self._ended and not self._output and self._hello is None:
            self.abort()

    def _lost(self) -> None:
        if not self._closed:
            self.abort()
            self.handler.on_abort()

    def _rewatch(self) -> None:
        if self._closed:
            return
        mask = HANGUP
        if self._unconsumed < WINDOW:
            mask |= READ
        if self._output and not (self._silent and self._hello is not None):
            mask |= WRITE
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self._fd, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if self._closed:
            return
        if mask & READ:
            self._read()
        elif mask & HANGUP:
            self._lost()

    def _read(self) -> None:
        try:
            count = os.readv(self._fd, (_INPUT,))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lost()
            return
        data: bytes | memoryview = _INPUT[:count]
        if self._hello is not None:
            self._hello += data
            if len(self._hello) < _HELLO_SIZE:
                return
            try:
                data = self._greeted(self._hello)
            except ProtocolError:
                self._lost()
                return
            if not data:
                return
        if not self._ended:  # else the call is over, and what comes now is thrown away
            self._unconsumed += len(data)
            self.handler.on_data(data)
            self._rewatch()

    def _greeted(self, data: bytes) -> bytes:
        control.HELLOS(HEADER.unpack_from(data))
        version = control.parse_hello(data[HEADER.size : _HELLO_SIZE])
        self._hello = None
        if self._silent:
            self._output.appendleft(control.hello(control.DATA_VERSION))
            self._pending += _HELLO_SIZE
            self._flush()
        self._most = control.chunk(version) + HEADER.size
        self._full = False
        if self._ended:
            self._check()
        else:
            self.handler.on_room()
        return data[_HELLO_SIZE:] if not self._closed else b""

    def _send(self, data: bytes) -> None:
        self._output.append(data)
        self._pending += len(data)
        self._flush()

    def _flush(self) -> None:
        output = self._output
        if self._silent and self._hello is not None:
            return  # our version comes first, and the peer's before it
        while output and not self._closed:
            try:
                count = os.write(self._fd, output[0])
            except BlockingIOError:
                break
            except OSError:
                self._lost()
                return
            self._pending -= count
            if count < len(output[0]):
                output[0] = memoryview(output[0])[count:]
            else:
                output.popleft()
        if self._closed:
            return
        self._check()
        if self._closed:
            return
        self._rewatch()
        if self._full and self._most and self._pending < WINDOW // 2 and not self._ended:
            self._full = False
            self.handler.on_room()
