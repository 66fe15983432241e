"""One of the many streams of a channel."""

from __future__ import annotations

from collections import deque

from casemate.streams.stream import Handler
from casemate.wire import mux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.streams.channel import Channel

HIGH_WATER = 256 * 1024
"""Limit of a qube's channel (bytes): bytes waiting for the channel; above it no stream may add more."""
_SMALL = 4096
"""Bytes below which a message waits for the end of the loop's round: small messages go together."""
_FRAME = bytearray(64 * 1024)
"""One frame, filled and written in place. It fits into two transfers of a port, which takes 32 KiB in each."""
_SPACE = memoryview(_FRAME)
BEFORE, AFTER = mux.HEADER.size, mux.TRAILER
"""Bytes of a frame around its payload."""
_SPACE_SIZE = len(_FRAME) - BEFORE - AFTER


class MuxStream:
    """One stream of a channel; see ``streams.stream.Stream`` for the contract."""

    __slots__ = ("_backlog", "_channel", "_ending", "_finishing", "_quiet", "handler", "number", "owed")

    def __init__(self, channel: Channel, number: int, handler: Handler) -> None:
        self._channel = channel
        self._backlog: deque[bytes] | None = None
        """What was written beyond the peer's window."""
        self._ending = False
        self._finishing = False
        self._quiet = False
        self.number = number
        self.handler = handler
        self.owed = 0
        """Bytes handed over that the peer's window was not given back for, because the handler has no room."""

    @property
    def closed(self) -> bool:
        """True when the stream is gone."""
        return self._channel.streams.get(self.number) is not self

    @property
    def sent(self) -> int:
        """Bytes written that the peer has given no window back for."""
        return self._channel.mux.sent(self.number) + sum(map(len, self._backlog or ()))

    def room(self) -> int:
        """See ``Stream``."""
        channel = self._channel
        if self._backlog or self._ending or channel.streams.get(self.number) is not self:
            return 0
        if channel.mux.pending >= HIGH_WATER:
            channel.starved.add(self.number)
            return 0
        return channel.mux.room(self.number)

    def write(self, data: bytes | memoryview) -> None:
        """See ``Stream``."""
        if self._ending or self.closed:
            return
        if self._backlog:
            self._backlog.append(bytes(data))
            return
        channel = self._channel
        credit = channel.mux.credit(self.number)
        if len(data) > credit:
            self._backlog = deque((bytes(data[credit:]),))
            data = data[:credit]
        channel.mux.send(self.number, data)
        if len(data) < _SMALL:
            channel.flush_later()
        else:
            channel.flush()

    def writev(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See ``Stream``."""
        self.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def space(self) -> memoryview:
        """See ``Stream``."""
        return _SPACE[BEFORE : BEFORE + min(self.room(), _SPACE_SIZE)]

    def commit(self, count: int) -> None:
        """See ``Stream``."""
        if not self.closed:
            self._channel.send_in_place(self.number, _SPACE[: BEFORE + count + AFTER])

    def splice_message(self, head: bytes, pipe: int, count: int) -> bool:
        """See ``Stream``: never, since many streams share the descriptor and each frame of theirs must be whole."""
        return False

    def resume(self) -> None:
        """See ``Stream``."""
        if self.owed and not self.closed:
            self._channel.consumed(self, 0)
            self._channel.flush()

    def eof(self) -> None:
        """See ``Stream``."""
        if self._ending or self.closed:
            return
        self._ending = True
        if not self._backlog:
            self._end()

    def finish(self) -> None:
        """See ``Stream``."""
        self._finishing = True
        self.resume()
        self.eof()
        if not self._backlog:
            self.abort()

    def abort(self) -> None:
        """See ``Stream``."""
        self._quiet = True
        if self._channel.remove(self):
            self._channel.mux.abort(self.number)
            self._channel.flush()

    def granted(self) -> None:
        """The peer's window has opened again."""
        backlog = self._backlog
        while backlog:
            credit = self._channel.mux.credit(self.number)
            if not credit:
                return
            piece = backlog.popleft()
            if len(piece) > credit:
                backlog.appendleft(piece[credit:])
            self._channel.mux.send(self.number, piece[:credit])
        if self._ending:
            self._end()
        else:
            self.handler.on_room()

    def say_closed(self) -> None:
        """Both directions have ended."""
        if not self._quiet:
            self.handler.on_closed()

    def _end(self) -> None:
        channel = self._channel
        channel.mux.eof(self.number)
        channel.tidy(self)
        if self._finishing:
            self.abort()
        channel.flush_later()
