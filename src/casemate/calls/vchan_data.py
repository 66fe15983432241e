"""A qrexec data channel over a vchan's socket, as a stream: the handshake first, then the call's data phase."""

from __future__ import annotations

import socket

from casemate.streams.loop import Loop
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import LEAST_ROOM, Handler
from casemate.wire import qrexec_control as control
from casemate.wire.errors import ProtocolError
from casemate.wire.qrexec import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_HELLO_SIZE = HEADER.size + 4


class DataChannel(Handler):
    """A stream on top of a ``SocketStream``, which it owns; see ``streams.stream.Stream`` for the contract.

    There is no room before the peer has said its version. A vchan is never half closed: the peer's end of it is the end
    of the call, and after ``eof`` the socket is closed when all was sent. ``on_closed`` is called once, whoever closed.
    ``wait_for_hello``: say our version only when the peer has said its own.
    """

    __slots__ = ("_early", "_ended", "_hello", "_most", "_on_closed", "_over", "_socket", "_starved", "handler")

    def __init__(
        self, loop: Loop, sock: socket.socket, on_closed: Callable[[DataChannel], None], wait_for_hello: bool = False
    ) -> None:
        self.handler = Handler()
        self._on_closed = on_closed
        self._hello: bytes | None = b""
        self._most = 0
        self._ended = False
        self._over = False
        self._starved = True
        self._early: list[bytes] | None = [] if wait_for_hello else None
        """What was written before our version may be said."""
        self._socket = SocketStream(loop, sock, self)
        if not wait_for_hello:
            self._socket.write(control.hello(control.DATA_VERSION))

    @property
    def closed(self) -> bool:
        """True when it is over."""
        return self._over

    @property
    def greeted(self) -> bool:
        """True when the peer has said its version."""
        return self._hello is None

    @property
    def pending(self) -> int:
        """Bytes written that have not gone yet."""
        return self._socket.pending

    # -- what the owner calls

    def room(self) -> int:
        """See ``Stream``; never more than one message of the peer's version.

        As the socket's handler this class answers the same question about the other direction, see ``buffer``.
        """
        room = 0 if self._ended else min(self._most, self._socket.room())
        if room < LEAST_ROOM:
            self._starved = True
            return 0
        return room

    def write(self, data: bytes | memoryview) -> None:
        """See ``Stream``."""
        if self._early is not None:
            self._early.append(bytes(data))
        elif not self._ended:
            self._socket.write(data)

    def writev(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See ``Stream``."""
        if self._early is not None:
            self._early += map(bytes, pieces)
        elif not self._ended:
            self._socket.writev(pieces)

    def space(self) -> memoryview:
        """See ``Stream``."""
        return self._socket.space()[: self.room()]

    def commit(self, count: int) -> None:
        """See ``Stream``."""
        self._socket.commit(count)

    def splice_message(self, head: bytes, pipe: int, count: int) -> bool:
        """See ``Stream``."""
        return self._early is None and not self._ended and self._socket.splice_message(head, pipe, count)

    def resume(self) -> None:
        """See ``Stream``."""
        self._socket.resume()

    def eof(self) -> None:
        """Close when all has been sent, and not before the peer has said its version: it may still be about to."""
        if not self._ended:
            self._ended = True
            if self._hello is None:
                self._socket.finish()

    finish = eof

    def abort(self) -> None:
        """Close at once; the handler is not called again."""
        if not self._over:
            self._over = True
            self._socket.abort()
            self._on_closed(self)

    # -- what the socket calls

    def buffer(self) -> memoryview:
        if self._hello is None and not self._ended:
            return self.handler.buffer()
        return _HELLO[: _HELLO_SIZE - len(self._hello or b"")]

    def take(self, fd: int) -> bool:
        return self._hello is None and not self._ended and self.handler.take(fd)

    def filled(self, count: int) -> None:
        if self._hello is None:
            if not self._ended:
                self.handler.filled(count)
            return
        self._hello += _HELLO[:count]
        if len(self._hello) < _HELLO_SIZE:
            return
        try:
            control.HELLOS(HEADER.unpack_from(self._hello))
            version = control.parse_hello(self._hello[HEADER.size :])
        except ProtocolError as error:
            self._socket.abort()
            self.on_abort(str(error))
            return
        self._hello = None
        if self._early is not None:
            self._socket.writev([control.hello(control.DATA_VERSION), *self._early])
            self._early = None
        self._most = control.chunk(version) + HEADER.size
        if self._ended:
            self._socket.finish()
        else:
            self.on_room()

    def on_room(self) -> None:
        if self._starved and not self._ended:
            self._starved = False
            self.handler.on_room()

    def on_eof(self) -> None:
        self._socket.abort()
        self.on_abort("closed by the other end")

    def on_abort(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._on_closed(self)
            self.handler.on_abort(why)

    def on_closed(self) -> None:
        if not self._over:
            self._over = True
            self._on_closed(self)
            self.handler.on_closed()


_HELLO = memoryview(bytearray(_HELLO_SIZE))
"""Where hellos are read into: not a byte more than one, so that what follows goes straight to the call."""
