"""The mirror sessions of a database: what keeps both ends of a channel the same. Sans-I/O."""

from __future__ import annotations

import time

from casemate.qdb.session import Database, Session, dump
from casemate.qdb.tree import GUEST_SUBTREES, guest_may_write
from casemate.wire import qdb
from casemate.wire.errors import ProtocolError, ValueInvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GUEST_RATE = 50.0
"""Limit of QubesDB (a second): writes of a qube in the long run."""
GUEST_BURST = 2000.0
"""Limit of QubesDB: writes of a qube at once."""
MAX_REFUSED = 5000
"""Writes of a guest that may be refused in a row before its channel is closed."""


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
        self._put(dump(self._database.tree.items()[::-1]))

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
