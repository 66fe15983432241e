"""QubesDB on the wire: the 72-byte record, its types, which paths may be asked for and stored. Sans-I/O."""

from __future__ import annotations

import struct

from casemate.wire import names
from casemate.wire.errors import ProtocolError, ValueInvalidError, printable

READ = 0
WRITE = 1
MULTIREAD = 2
LIST = 3
RM = 4
WATCH = 5
UNWATCH = 6
OK = 7
NOENT = 8
ERROR = 9
RESP_READ = 10
RESP_MULTIREAD = 11
RESP_LIST = 12
RESP_WATCH = 13

RECORD = struct.Struct("<B64s3xI")
MAX_PATH = 63
"""Limit of QubesDB (characters): path."""
MAX_DATA = 3071
"""Limit of QubesDB (bytes): value."""
_PATH_BYTES = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.:@-/"


def record(kind: int, path: str, data: bytes = b"") -> bytes:
    """One record; the tail of the path field is zeros."""
    raw = path.encode("ascii")
    if len(raw) > MAX_PATH or b"\0" in raw or len(data) > MAX_DATA:
        raise ValueInvalidError(f"Path or value is too long for the database: {printable(path, 80)!r}")
    return RECORD.pack(kind, raw, len(data)) + data


def query_path(path: str) -> str:
    """A path that may be asked for: a prefix may be empty, end with ``/`` and lack the leading one."""
    raw = path.encode("ascii", "replace")
    if len(raw) > MAX_PATH or raw.startswith(b"-") or raw.translate(None, _PATH_BYTES):
        raise ValueInvalidError(f"Invalid database path: {printable(path, 80)!r}")
    return path


def stored_path(path: str) -> str:
    """A path that a value may be stored at."""
    return names.database_path(path)


def subtree_path(path: str) -> str:
    """A path that may be removed: a stored one, or a subtree (``/a/``, or ``/`` for everything)."""
    if path != "/":
        names.database_path(path[:-1] if path.endswith("/") else path)
    return path


def value(data: bytes) -> bytes:
    """A value that may be stored: no NUL, at most MAX_DATA bytes."""
    if len(data) > MAX_DATA or b"\0" in data:
        raise ValueInvalidError("The value is too long for the database or has a NUL in it")
    return data


class Record:
    """A record as received. ``fault`` says why it must not be acted on ("" when it is well formed)."""

    __slots__ = ("data", "fault", "kind", "path")

    def __init__(self, kind: int, path: str, data: bytes, fault: str = "") -> None:
        self.kind = kind
        self.path = path
        self.data = data
        self.fault = fault


class RecordReader:
    """Cuts a stream into records; holds at most one, whatever its header claims.

    A record that is too long is swallowed and handed out with a fault, as upstream's server does for its local clients.
    With ``strict`` (the peer is another database) every fault is a ProtocolError.
    """

    __slots__ = ("_buffer", "_skip", "_skipped", "_strict")

    def __init__(self, strict: bool = False) -> None:
        self._buffer = bytearray()
        self._strict = strict
        self._skip = 0
        self._skipped: Record | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes; then call ``next`` until it returns None."""
        if self._skip:
            used = min(self._skip, len(data))
            self._skip -= used
            data = data[used:]
        self._buffer += data

    @property
    def waiting(self) -> int:
        """Bytes taken and not handed out."""
        return len(self._buffer)

    def next(self) -> Record | None:
        """The next record, or None when more bytes are needed."""
        if self._skip:
            return None
        if self._skipped is not None:
            found, self._skipped = self._skipped, None
            return found
        buffer = self._buffer
        if len(buffer) < RECORD.size:
            return None
        kind, field, length = RECORD.unpack_from(buffer)
        if length > MAX_DATA:
            if self._strict:
                raise ProtocolError(f"database: value of {length} bytes")
            self._skipped = Record(kind, _path(field)[0], b"", "value too long")
            del buffer[: RECORD.size]
            self._skip = max(0, length - len(buffer))
            del buffer[:length]
            return self.next()
        end = RECORD.size + length
        if len(buffer) < end:
            return None
        path, fault = _path(field)
        data = bytes(buffer[RECORD.size : end])
        del buffer[:end]
        if kind > RESP_WATCH:
            fault = "unknown type"
        if fault and self._strict:
            raise ProtocolError(f"database: {fault}")
        return Record(kind, path, data, fault)


def _path(field: bytes) -> tuple[str, str]:
    """The path in its field, and what is wrong with it. What follows the NUL is junk of the sender."""
    raw, nul, _ = field.partition(b"\0")
    if not nul:
        return "", "path without its end"
    if raw.startswith(b"-") or raw.translate(None, _PATH_BYTES):
        return "", "character not allowed in path"
    return raw.decode("ascii"), ""
