"""Carries database sessions: over unix sockets for programs, over a stream of the channel for the mirror."""

from __future__ import annotations

import socket

from casemate.qdb.session import Database, LocalSession, Session
from casemate.streams.channel import Stream, StreamHandler
from casemate.streams.listener import Listener
from casemate.streams.loop import HANGUP, READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CLIENTS = 256
"""Limit of QubesDB: connections to one database."""


class _Client:
    """One program's connection."""

    def __init__(self, server: DatabaseServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._session = LocalSession(server.database)
        self._session.on_output = self._output
        self._unsent = b""
        self._mask = 0
        self._flushing = False
        sock.setblocking(False)
        self._rewatch()

    def _ready(self, mask: int) -> None:
        if mask & READ and self._session.wants_input:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self._close()
                return
            if data:
                self._session.feed(data)
        elif mask & HANGUP:
            self._close()
            return
        self._flush()

    def _output(self) -> None:
        # May come from within another session's work: write in the next round of the loop.
        if not self._flushing:
            self._flushing = True
            self._server.loop.later(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._sock.fileno() < 0:
            return
        while self._unsent or self._session.pending:
            self._unsent = self._unsent or self._session.take_output()
            try:
                count = self._sock.send(self._unsent)
            except BlockingIOError:
                break
            except OSError:
                self._close()
                return
            self._unsent = self._unsent[count:]
        if self._session.closed and not self._unsent:
            self._close()
            return
        self._rewatch()

    def _rewatch(self) -> None:
        mask = HANGUP | (READ if self._session.wants_input else 0) | (WRITE if self._unsent else 0)
        if mask != self._mask:
            self._mask = mask
            self._server.loop.watch(self._sock.fileno(), mask, self._ready)

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            self._server.loop.forget(self._sock.fileno())
            self._sock.close()
            self._session.close()
            self._server.clients -= 1


class DatabaseServer:
    """Serves the database to programs on a listening unix socket."""

    def __init__(self, loop: Loop, sock: socket.socket, database: Database) -> None:
        self.loop = loop
        self.database = database
        self.clients = 0
        Listener(loop, sock, self._accepted)

    def _accepted(self, sock: socket.socket) -> None:
        if self.clients >= MAX_CLIENTS:
            sock.close()
            return
        self.clients += 1
        _Client(self, sock)


class DatabaseStream(StreamHandler):
    """A mirror session on a stream of the channel. ``on_broken(reason)`` when the peer broke its rules."""

    def __init__(self, loop: Loop, stream: Stream, session: Session, on_broken: Callable[[str], None]) -> None:
        self._loop = loop
        self._stream = stream
        self._session = session
        self._on_broken = on_broken
        self._flushing = False
        stream.handler = self
        session.on_output = self._output
        self._output()

    def _output(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.later(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        while self._session.pending and (room := self._stream.room()):
            self._stream.write(self._session.take_output(min(room, 65536)))
        if self._session.closed and self._session.reason:
            self._stream.abort()
            self._session.close()
            self._on_broken(self._session.reason)

    def on_data(self, data: bytes | memoryview) -> None:
        self._session.feed(data)
        self._stream.consumed(len(data))
        self._flush()

    def on_room(self) -> None:
        self._flush()

    def on_eof(self) -> None:
        self.on_abort()

    def on_abort(self) -> None:
        self._session.close()
