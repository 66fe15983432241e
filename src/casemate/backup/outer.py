"""The outer archive: one small tar for each member, one after another; read strictly, in one pass.

A backup may come from anywhere, and its tar headers are not authenticated. So only what a writer of backups makes is
accepted: regular files with plain names, written in the POSIX format. Everything else ends the reading at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from casemate.backup.errors import BackupError, RefusedError
from casemate.backup.tar_header import BLOCK, Header, archive_end, padding, parse, pax_records, ustar
from casemate.wire.errors import printable

MAX_EXTENDED = 64 * 1024
"""Limit of a backup (bytes): an extended header of the outer archive."""
MAX_MEMBER = 128 << 20
"""Limit of a backup (bytes): a member. Writers cut at 100 MiB."""
MAX_NAME = 1024
_PIECE = 1 << 20
_CUT_HEADER = "The backup ends in the midst of a tar header"


class Readable(Protocol):
    """A file, or a pipe."""

    def read(self, size: int, /) -> bytes: ...


class Writable(Protocol):
    """A file, or a pipe."""

    def write(self, data: bytes | memoryview, /) -> object: ...


@dataclass(slots=True)
class Member:
    """A member whose data comes next. Its ``read`` must have returned everything before the next member is asked for;
    what is left is skipped."""

    name: str
    size: int
    _stream: Readable
    _left: int
    _padding: int

    def data(self) -> bytearray:
        """All of it; RefusedError when the stream ends before."""
        out = bytearray(self.size)
        view = memoryview(out)
        at = 0
        while self._left:
            piece = self._read(min(self._left, _PIECE))
            view[at : at + len(piece)] = piece
            at += len(piece)
        return out

    def skip(self) -> None:
        """Leave out what was not read, and the padding after it; once is enough."""
        while self._left:
            self._read(min(self._left, _PIECE))
        padded, self._padding = self._padding, 0
        exactly(self._stream, padded, f"The backup ends in the midst of {self.name}")

    def _read(self, count: int) -> bytes:
        piece = self._stream.read(count)
        if not piece:
            raise RefusedError(f"The backup ends in the midst of {self.name}")
        self._left -= len(piece)
        return piece


def members(stream: Readable, most: int = MAX_MEMBER) -> Iterator[Member]:
    """The members in their order. ``most``: the largest size in bytes that one may have. Raises RefusedError."""
    extended: dict[str, str] = {}
    while (block := _block(stream)) is not None:
        header = parse(block)
        if header is None:
            continue  # between two archives, and padding of each
        if header.kind == "x" and not extended:
            extended = _extended(stream, header)
            continue
        name = extended.get("path", header.name)
        size = _size(extended["size"]) if "size" in extended else header.size
        extended = {}
        if header.kind not in ("0", "\0"):
            raise RefusedError(f"Member {printable(name, 80)} is not a regular file (type {printable(header.kind)})")
        if header.mode & 0o7000:
            raise RefusedError(f"Member {printable(name, 80)} has a special mode")
        if size > most:
            raise RefusedError(
                f"Member {printable(name, 80)} is said to have {size} bytes; at most {most} are possible"
            )
        member = Member(name, size, stream, size, padding(size))
        yield member
        member.skip()


def _block(stream: Readable) -> bytes | None:
    first = stream.read(BLOCK)
    return first + exactly(stream, BLOCK - len(first), _CUT_HEADER) if first else None


def exactly(stream: Readable, count: int, otherwise: str, failure: type[BackupError] = RefusedError) -> bytes:
    """So many bytes, also of a pipe; ``failure``, which says ``otherwise``, when the stream ends before."""
    parts: list[bytes] = []
    while count:
        more = stream.read(count)
        if not more:
            raise failure(otherwise)
        parts.append(more)
        count -= len(more)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _extended(stream: Readable, header: Header) -> dict[str, str]:
    """The records of a POSIX extended header: path and size count, times are left out, nothing else may be there."""
    if not 0 < header.size <= MAX_EXTENDED:
        raise RefusedError(f"An extended tar header has {header.size} bytes")
    data = exactly(stream, header.size, _CUT_HEADER)
    exactly(stream, padding(header.size), _CUT_HEADER)
    found: dict[str, str] = {}
    for name, value in pax_records(data):
        if name in ("path", "size"):
            if len(value) >= MAX_NAME or name in found:
                raise RefusedError("An extended tar header has a name that is too long, or given twice")
            found[name] = value.decode("ascii", "backslashreplace")
        elif name not in ("mtime", "atime", "ctime", "uid", "gid", "uname", "gname"):
            raise RefusedError(f"An extended tar header has {printable(name, 40)}")
    return found


def _size(text: str) -> int:
    if not text.isdecimal() or len(text) > 20:
        raise RefusedError(f"A tar header has the size {printable(text, 40)!r}")
    return int(text)


def write_member(stream: Writable, name: str, pieces: list[bytes | memoryview]) -> int:
    """Write one member as an archive of its own; the bytes written."""
    size = sum(map(len, pieces))
    stream.write(ustar(name, size, int(time.time()), 0o600))
    for piece in pieces:
        stream.write(piece)
    end = archive_end(BLOCK + size)
    stream.write(end)
    return BLOCK + size + len(end)


def sync(fd: int) -> None:
    """Make sure that what was written is on the disk, where there is one."""
    try:
        os.fsync(fd)
    except OSError:
        pass  # a pipe or a terminal
