"""Callers that wait for a stream of the channel: no more at once than the other end takes, none of them lost."""

from __future__ import annotations

import socket
from collections import deque

from casemate.streams.channel import Channel
from casemate.streams.join import join
from casemate.streams.loop import Loop
from casemate.streams.mux_stream import HIGH_WATER
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import Handler
from casemate.wire import mux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.streams.mux_stream import MuxStream

AT_ONCE = mux.MAX_STREAMS - 8
"""Streams for calls; the rest is for the database and for control."""
WAITING = 1024
"""Callers in the queue; the next one is sent away."""


class CallQueue:
    """Joins sockets to streams. Made by a link or an agent for all of its life; owns the sockets that it is given.

    ``on_joined`` hears of each call whose stream was opened.
    """

    def __init__(
        self, loop: Loop, on_joined: Callable[[SocketStream, MuxStream], None] = lambda _caller, _stream: None
    ) -> None:
        self._loop = loop
        self._on_joined = on_joined
        self._channel: Channel | None = None
        self._queue: deque[tuple[bytes, socket.socket]] = deque()

    def use(self, channel: Channel | None) -> None:
        """From now on open streams on this channel; with None those who wait are sent away."""
        self._channel = channel
        if channel is None:
            while self._queue:
                self._queue.popleft()[1].close()
        self._next()

    def add(self, opening: bytes, sock: socket.socket) -> None:
        """Open a stream for the socket, or let it wait for one."""
        if self._channel is None or len(self._queue) >= WAITING:
            sock.close()
            return
        self._queue.append((opening, sock))
        self._next()

    def _next(self, _why: str = "") -> None:
        channel = self._channel
        while self._queue and channel is not None and channel.mux.connected and channel.mux.own_streams() < AT_ONCE:
            if channel.mux.pending >= HIGH_WATER:
                # The other end does not read now (it may be paused): requests would pile up for it.
                self._loop.later(_BUSY_SECONDS, self._next)
                return
            opening, sock = self._queue.popleft()
            caller, stream = SocketStream(self._loop, sock), channel.open(opening, Handler())
            self._on_joined(caller, stream)
            join(caller, stream, self._next)


_BUSY_SECONDS = 0.1
