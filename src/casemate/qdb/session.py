"""The database of one qube and its connections; those of local programs. Sans-I/O; the mirror is in mirror.

Both ends of a qube's channel hold the whole database. The owner of the sockets feeds bytes to sessions and writes what
``take_output`` gives; a change that comes in on one session reaches the watches of all others and the other end.
"""

from __future__ import annotations

from collections import deque

from casemate.qdb.tree import GUEST_SUBTREES, Tree, guest_may_write
from casemate.wire import qdb
from casemate.wire.errors import ProtocolError, ValueInvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HIGH_WATER = 256 * 1024
"""Output waiting above which a session reads no more requests."""
MAX_OUTPUT = 4 * 1024 * 1024
"""Limit of QubesDB (bytes): output that waits for a connection that does not read; above it the connection is
closed."""
MAX_WATCHES = 64
"""Limit of QubesDB: watches of one connection."""


class Session:
    """A connection to the database. When ``closed``, write what is left, then close the socket and ``detach``."""

    def __init__(self, database: Database, strict: bool) -> None:
        self._database = database
        self._reader = qdb.RecordReader(strict)
        self._queue: deque[bytes | Iterator[bytes]] = deque()
        self._waiting = 0
        self._bulk = 0
        self.closed = False
        self.reason = ""
        """Why the session was closed, for the log."""
        self.on_output: Callable[[], None] | None = None
        """Called when there is output after there was none; it must not call ``take_output`` itself."""
        database.attach(self)

    # -- for the owner of the socket

    @property
    def pending(self) -> bool:
        """True when ``take_output`` has something to give."""
        return bool(self._queue)

    @property
    def wants_input(self) -> bool:
        """False while the peer should drain before it asks for more."""
        return not self.closed and not self._blocked()

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes of the peer."""
        if not self.closed:
            self._reader.feed(data)
            self._work()

    def take_output(self, limit: int = 65536) -> bytes:
        """At most ``limit`` bytes to write; they count as written."""
        parts: list[bytes] = []
        size = 0
        while self._queue and size < limit:
            head = self._queue[0]
            if isinstance(head, bytes):
                self._queue.popleft()
                self._waiting -= len(head)
                if size + len(head) > limit:
                    rest = head[limit - size :]
                    head = head[: limit - size]
                    self._queue.appendleft(rest)
                    self._waiting += len(rest)
                parts.append(head)
                size += len(head)
                continue
            piece = next(head, None)
            if piece is None:
                self._queue.popleft()
                self._bulk -= 1
            else:
                self._queue.appendleft(piece)
                self._waiting += len(piece)
        self._work()
        return b"".join(parts)

    def close(self) -> None:
        """The peer is gone: no more input or output."""
        self.closed = True
        self._drop()
        self._database.detach(self)

    # -- for subclasses and the database

    def _drop(self) -> None:
        self._queue.clear()
        self._waiting = self._bulk = 0

    def _blocked(self) -> bool:
        return self._bulk > 0 or self._waiting >= HIGH_WATER

    def _work(self) -> None:
        try:
            while not self.closed and not self._blocked():
                record = self._reader.next()
                if record is None:
                    return
                self._handle(record)
        except ProtocolError as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self.closed = True
        self.reason = reason
        self._drop()
        if self.on_output is not None:
            self.on_output()

    def _put(self, item: bytes | Iterator[bytes]) -> None:
        if self.closed:
            return
        first = not self._queue
        self._queue.append(item)
        if isinstance(item, bytes):
            self._waiting += len(item)
            if self._waiting > MAX_OUTPUT:
                self._fail("the peer does not read")
                return
        else:
            self._bulk += 1
        if first and self.on_output is not None:
            self.on_output()

    def _handle(self, record: qdb.Record) -> None:
        raise NotImplementedError

    def changed(self, path: str, value: bytes | None, origin: Session | None) -> None:
        """The database has a new value at ``path``, or (None) lost the path or subtree."""
        raise NotImplementedError


class Database:
    """All entries of one qube at one end of its channel; ``guest`` says which end."""

    def __init__(self, guest: bool = False) -> None:
        self.tree = Tree()
        self.guest = guest
        self._sessions: list[Session] = []
        self.on_change: Callable[[str], None] | None = None
        """Called with the path of each change, after the tree has it."""

    def attach(self, session: Session) -> None:
        """Tell a session of changes from now on; sessions do it themselves."""
        self._sessions.append(session)

    def detach(self, session: Session) -> None:
        """Forget a session."""
        if session in self._sessions:
            self._sessions.remove(session)

    def announce(self, path: str, value: bytes | None, origin: Session | None = None) -> None:
        """Tell all sessions of a change that ``tree`` has already seen."""
        for session in tuple(self._sessions):
            session.changed(path, value, origin)
        if self.on_change is not None:
            self.on_change(path)

    def write(self, path: str, value: bytes) -> None:
        """Store a value and tell everybody."""
        self.tree.write(path, value)
        self.announce(path, value)

    def remove(self, path: str) -> bool:
        """Remove a key or (with ``/`` at its end) a subtree and tell everybody; False when there was nothing."""
        qdb.subtree_path(path)
        found = self.tree.remove(path)
        if found:
            self.announce(path, None)
        return found

    def replace(self, entries: Mapping[str, bytes]) -> None:
        """Make what the host has stored exactly ``entries``: only differences are written and announced."""
        for path in self.tree.paths():
            if path not in entries and not path.startswith(GUEST_SUBTREES):
                self.remove(path)
        for path in sorted(entries):
            if self.tree.read(path) != entries[path]:
                self.write(path, entries[path])


class LocalSession(Session):
    """A program at this end. In a guest it may write only where the guest may write."""

    def __init__(self, database: Database, read_only: bool = False) -> None:
        super().__init__(database, strict=False)
        self._read_only = read_only
        self._watches: list[str] = []

    def changed(self, path: str, value: bytes | None, origin: Session | None) -> None:
        """Tell the program, once for each of its watches that match."""
        for watch in self._watches:
            if path == watch or (watch.endswith("/") and path.startswith(watch)):
                self._put(qdb.record(qdb.RESP_WATCH, path))
            elif value is None and path.endswith("/") and watch.startswith(path):
                self._put(qdb.record(qdb.RESP_WATCH, watch))

    def _handle(self, record: qdb.Record) -> None:
        if record.fault:
            self._put(qdb.record(qdb.ERROR, record.path))
            return
        kind, path = record.kind, record.path
        tree = self._database.tree
        if kind == qdb.READ:
            value = tree.read(path)
            self._put(qdb.record(qdb.NOENT, path) if value is None else qdb.record(qdb.RESP_READ, path, value))
        elif kind == qdb.MULTIREAD:
            self._put(dump(tree.items(path)))
        elif kind == qdb.LIST:
            self._put(_names(tree.paths(path)))
        elif kind == qdb.WATCH:
            full = len(self._watches) >= MAX_WATCHES
            if not full:
                self._watches.append(path)
            self._put(qdb.record(qdb.ERROR if full else qdb.OK, path))
        elif kind == qdb.UNWATCH:
            known = path in self._watches
            if known:
                self._watches.remove(path)
            self._put(qdb.record(qdb.OK if known else qdb.NOENT, path))
        elif kind in (qdb.WRITE, qdb.RM):
            self._change(record)
        else:
            self._put(qdb.record(qdb.ERROR, path))

    def _change(self, record: qdb.Record) -> None:
        path = record.path
        value = record.data if record.kind == qdb.WRITE else None
        reply = qdb.OK
        try:
            if self._read_only or (self._database.guest and not guest_may_write(path, value)):
                reply = qdb.ERROR
            elif value is not None:
                self._database.tree.write(path, value)
            elif not self._database.tree.remove(qdb.subtree_path(path)):
                reply = qdb.NOENT
        except ValueInvalidError:
            reply = qdb.ERROR
        self._put(qdb.record(reply, path))
        if reply == qdb.OK:
            self._database.announce(path, value, self)


def dump(items: list[tuple[str, bytes]]) -> Iterator[bytes]:
    """The answer to a MULTIREAD, record by record."""
    for path, value in items:
        yield qdb.record(qdb.RESP_MULTIREAD, path, value)
    yield qdb.record(qdb.RESP_MULTIREAD, "")


def _names(paths: list[str]) -> Iterator[bytes]:
    for path in paths:
        yield qdb.record(qdb.RESP_LIST, path)
    yield qdb.record(qdb.RESP_LIST, "")
