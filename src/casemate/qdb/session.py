"""The database of one qube and its connections: local programs, and the mirror at the other end. Sans-I/O.

Both ends of a qube's channel hold the whole database. The owner of the sockets feeds bytes to sessions and writes what
``take_output`` gives; a change that comes in on one session reaches the watches of all others and the other end.
"""

from __future__ import annotations

import time
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
GUEST_RATE = 50.0
"""Limit of QubesDB (a second): writes of a qube in the long run."""
GUEST_BURST = 2000.0
"""Limit of QubesDB: writes of a qube at once."""
MAX_REFUSED = 5000
"""A guest's writes: per second, at once, and how many may be refused in a row before it is cut off."""


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
            self._put(_dump(tree.items(path)))
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


def _dump(items: list[tuple[str, bytes]]) -> Iterator[bytes]:
    for path, value in items:
        yield qdb.record(qdb.RESP_MULTIREAD, path, value)
    yield qdb.record(qdb.RESP_MULTIREAD, "")


def _names(paths: list[str]) -> Iterator[bytes]:
    for path in paths:
        yield qdb.record(qdb.RESP_LIST, path)
    yield qdb.record(qdb.RESP_LIST, "")


class _Mirror(Session):
    """The database at the other end. Every fault of the peer ends the session."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, strict=True)
        self.synced = False
        """True once both ends hold the same."""
        self._unanswered = 0

    def _send_change(self, path: str, value: bytes | None) -> None:
        self._unanswered += 1
        self._put(qdb.record(qdb.RM, path) if value is None else qdb.record(qdb.WRITE, path, value))

    def _answered(self) -> None:
        self._unanswered -= 1
        if self._unanswered < 0:
            raise ProtocolError("database: answer to nothing")

    def _handle(self, record: qdb.Record) -> None:
        if record.kind in (qdb.OK, qdb.NOENT, qdb.ERROR):
            if record.data:
                raise ProtocolError("database: answer with a value")
            self._answered()
        elif self.synced and record.kind == qdb.WRITE:
            self._apply(record.path, record.data)
        elif self.synced and record.kind == qdb.RM and not record.data:
            self._apply(record.path, None)
        else:
            self._handle_sync(record)

    def _handle_sync(self, record: qdb.Record) -> None:
        raise NotImplementedError

    def _allowed(self, path: str, value: bytes | None) -> bool:
        raise NotImplementedError

    def _apply(self, path: str, value: bytes | None) -> None:
        done = self._allowed(path, value)
        try:
            if done and value is not None:
                self._database.tree.write(path, value)
            elif done:
                self._database.tree.remove(qdb.subtree_path(path))
        except ValueInvalidError:
            done = False
        self._put(qdb.record(qdb.OK if done else qdb.ERROR, path))
        if done:
            self._database.announce(path, value, self)


class HostMirror(_Mirror):
    """The host's end: gives the guest everything once, then every change; takes only what a guest may write."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(database)
        self._clock = clock
        self._tokens = GUEST_BURST
        self._time = clock()
        self._refused = 0

    def changed(self, path: str, value: bytes | None, origin: Session | None) -> None:
        """Send a change on, unless it came from here or the guest has not asked for the database yet."""
        if origin is not self and self.synced:
            self._send_change(path, value)

    def _handle_sync(self, record: qdb.Record) -> None:
        if self.synced or record.kind != qdb.MULTIREAD or record.path or record.data:
            raise ProtocolError(f"database: record of type {record.kind} is not allowed here")
        self.synced = True
        self._put(_dump(self._database.tree.items()[::-1]))

    def _allowed(self, path: str, value: bytes | None) -> bool:
        now = self._clock()
        self._tokens = min(GUEST_BURST, self._tokens + (now - self._time) * GUEST_RATE)
        self._time = now
        if self._tokens >= 1 and guest_may_write(path, value):
            self._tokens -= 1
            self._refused = 0
            return True
        self._refused += 1
        if self._refused > MAX_REFUSED:
            raise ProtocolError("database: too many writes that are not allowed")
        return False


class GuestMirror(_Mirror):
    """The guest's end: asks for everything at once, then follows the host; sends what the guest may write."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._seen: set[str] = set()
        self._ours: dict[str, bytes] = {
            path: value for path, value in database.tree.items() if path.startswith(GUEST_SUBTREES)
        }
        self.on_synced: Callable[[], None] | None = None
        """Called once, when the host has sent everything."""
        self._put(qdb.record(qdb.MULTIREAD, ""))

    def changed(self, path: str, value: bytes | None, origin: Session | None) -> None:
        """Send a change of the guest on; before the database is in step, remember it."""
        if origin is self or not guest_may_write(path, value):
            return
        if self.synced:
            self._send_change(path, value)
        elif value is not None:
            self._ours[path] = value
        else:
            self._ours = {key: old for key, old in self._ours.items() if key != path and not _below(key, path)}

    def _handle_sync(self, record: qdb.Record) -> None:
        if self.synced or record.kind != qdb.RESP_MULTIREAD:
            raise ProtocolError(f"database: record of type {record.kind} is not allowed here")
        if not record.path:
            self._finish_sync()
            return
        self._seen.add(record.path)
        if record.path in self._ours:
            if self._ours[record.path] == record.data:
                del self._ours[record.path]
            return
        if self._database.tree.read(record.path) != record.data:
            try:
                self._database.tree.write(record.path, record.data)
            except ValueInvalidError:
                return
            self._database.announce(record.path, record.data, self)

    def _finish_sync(self) -> None:
        for path in self._database.tree.paths():
            if path not in self._seen and not path.startswith(GUEST_SUBTREES):
                self._database.tree.remove(path)
                self._database.announce(path, None, self)
        self.synced = True
        for path, value in self._ours.items():
            self._send_change(path, value)
        self._seen.clear()
        self._ours.clear()
        if self.on_synced is not None:
            self.on_synced()

    def _allowed(self, path: str, value: bytes | None) -> bool:
        return True


def _below(path: str, tree: str) -> bool:
    return tree.endswith("/") and path.startswith(tree)
