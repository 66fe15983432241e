"""Blocking client of a qube's database. A database that is gone is DisconnectedError, at once, never None."""

from __future__ import annotations

import socket
from collections import deque

from casemate.streams.ready import readable
from casemate.wire import qdb
from casemate.wire.errors import DisconnectedError, ProtocolError, ValueInvalidError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from types import TracebackType


class QubesDB:
    """A connection to the database whose socket is ``path``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = str(path)
        self._socket: socket.socket | None = None
        self.refresh()

    def refresh(self) -> None:
        """Connect anew: to the database as it is now, after DisconnectedError or a restart of its qube.

        Nothing of the connection before is left: neither answers on their way nor watches.
        """
        self.close()
        self._reader = qdb.RecordReader(strict=True)
        self._events: deque[str] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self.close()
            raise DisconnectedError(f"The database cannot be reached: {error.strerror}") from error

    def __enter__(self) -> QubesDB:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; watches end with it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def read(self, path: str) -> bytes | None:
        """The value at ``path``; None when the database has none."""
        reply = self._ask(qdb.READ, path)
        if reply.kind == qdb.NOENT:
            return None
        self._expect(reply, qdb.RESP_READ)
        return reply.data

    def write(self, path: str, value: bytes) -> None:
        """Store a value."""
        self._expect(self._ask(qdb.WRITE, path, value), qdb.OK)

    def rm(self, path: str) -> bool:
        """Remove a key, or a subtree when ``path`` ends with ``/``; False when there was nothing."""
        reply = self._ask(qdb.RM, path)
        if reply.kind == qdb.NOENT:
            return False
        self._expect(reply, qdb.OK)
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Paths that start with ``prefix``, sorted."""
        return [reply.path for reply in self._ask_many(qdb.LIST, qdb.RESP_LIST, prefix)]

    def multiread(self, prefix: str = "") -> dict[str, bytes]:
        """Paths that start with ``prefix`` and their values."""
        return {reply.path: reply.data for reply in self._ask_many(qdb.MULTIREAD, qdb.RESP_MULTIREAD, prefix)}

    def watch(self, path: str) -> None:
        """Have ``read_watch`` tell of changes at ``path``, or below it when it ends with ``/``."""
        self._expect(self._ask(qdb.WATCH, path), qdb.OK)

    def unwatch(self, path: str) -> bool:
        """Stop watching; False when it was not watched."""
        reply = self._ask(qdb.UNWATCH, path)
        if reply.kind == qdb.NOENT:
            return False
        self._expect(reply, qdb.OK)
        return True

    def watch_fd(self) -> int:
        """Descriptor that is readable when ``read_watch`` may have something; ask ``read_watch(0)`` before waiting."""
        return self._connected().fileno()

    def read_watch(self, timeout: float | None = None) -> str | None:
        """Path of the next change of a watched key; None when ``timeout`` seconds bring none."""
        while not self._events:
            record = self._reader.next()
            if record is not None:
                self._expect(record, qdb.RESP_WATCH)
                self._events.append(record.path)
            elif timeout is not None and not readable([self._connected()], timeout):
                return None
            else:
                self._fill()
        return self._events.popleft()

    # -- bytes

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise DisconnectedError("The connection to the database is closed")
        return self._socket

    def _ask(self, kind: int, path: str, value: bytes = b"") -> qdb.Record:
        self._send(kind, path, value)
        return self._reply()

    def _ask_many(self, kind: int, answer: int, prefix: str) -> tuple[qdb.Record, ...]:
        self._send(kind, prefix)
        found: list[qdb.Record] = []
        while True:
            reply = self._reply()
            self._expect(reply, answer)
            if not reply.path:
                return tuple(found)
            found.append(reply)

    def _send(self, kind: int, path: str, value: bytes = b"") -> None:
        wire = qdb.record(kind, qdb.query_path(path), value)
        try:
            self._connected().sendall(wire)
        except OSError as error:
            self.close()
            raise DisconnectedError(f"The database is gone: {error.strerror}") from error

    def _reply(self) -> qdb.Record:
        while True:
            record = self._reader.next()
            if record is None:
                self._fill()
            elif record.kind == qdb.RESP_WATCH:
                self._events.append(record.path)
            else:
                return record

    def _fill(self) -> None:
        try:
            data = self._connected().recv(65536)
        except OSError as error:
            self.close()
            raise DisconnectedError(f"The database is gone: {error.strerror}") from error
        if not data:
            self.close()
            raise DisconnectedError("The database is gone")
        self._reader.feed(data)

    def _expect(self, reply: qdb.Record, kind: int) -> None:
        if reply.kind == qdb.ERROR:
            raise ValueInvalidError(f"The database refused {printable(reply.path, 80)!r}")
        if reply.kind != kind:
            self.close()
            raise ProtocolError("database: unexpected answer")
