"""Carries database sessions over streams: unix sockets of programs, and the mirror's stream of the channel."""

from __future__ import annotations

import socket

from casemate.qdb.session import Database, LocalSession, Session
from casemate.streams.listener import Listener
from casemate.streams.loop import Loop
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import WINDOW, Handler, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CLIENTS = 256
"""Limit of QubesDB: connections to one database."""
_PIECE = 65536


class SessionStream(Handler):
    """A session on a stream. ``on_end(why)`` is called once: "" when the peer has gone, else how it broke the rules.

    A peer that does not read its answers is not read from: the session takes requests only while its output is below
    its bound, and so long the stream has room.
    """

    def __init__(self, loop: Loop, stream: Stream, session: Session, on_end: Callable[[str], None]) -> None:
        self._loop = loop
        self._stream = stream
        self._session = session
        self._on_end = on_end
        self._flushing = False
        self._over = False
        stream.handler = self
        session.on_output = self._output
        if session.pending:
            self._output()

    def _output(self) -> None:
        # May come from within another session's work: write when that is done.
        if not self._flushing:
            self._flushing = True
            self._loop.soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        session, stream = self._session, self._stream
        while session.pending and (room := stream.room()):
            stream.write(session.take_output(min(room, _PIECE)))
        if session.closed:
            if not self._over:
                stream.abort()
                self._end(session.reason)
        elif session.wants_input:
            stream.resume()

    def _end(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._session.close()
            self._on_end(why)

    def room(self) -> int:
        return WINDOW if self._session.wants_input else 0

    def on_data(self, data: memoryview) -> None:
        self._session.feed(data)
        self._flush()

    def on_room(self) -> None:
        self._flush()

    def on_eof(self) -> None:
        self._stream.abort()
        self._end("")

    def on_abort(self, why: str) -> None:
        self._end("")


class DatabaseServer:
    """Serves the database to programs on a listening unix socket."""

    def __init__(self, loop: Loop, sock: socket.socket, database: Database) -> None:
        self._loop = loop
        self._database = database
        self._clients = 0
        Listener(loop, sock, self._accepted)

    def _accepted(self, sock: socket.socket) -> None:
        if self._clients >= MAX_CLIENTS:
            sock.close()
            return
        self._clients += 1
        SessionStream(self._loop, SocketStream(self._loop, sock), LocalSession(self._database), self._gone)

    def _gone(self, _why: str) -> None:
        self._clients -= 1
