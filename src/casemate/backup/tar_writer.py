"""The archive inside: one file as a tar archive, its holes left out.

A file with holes is written in POSIX' sparse format 1.0, as upstream writes volumes that are block devices. GNU tar
reads it since 2006.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from casemate.backup.tar_header import archive_end, padding, pax, ustar

_PIECE = 1 << 20


class Content(Protocol):
    """A file to be backed up."""

    size: int
    """Bytes with its holes."""

    def extents(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is not a hole, ascending."""

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes, all of them."""


class FileContent:
    """An open file; its holes are asked of the file system (SEEK_DATA), not found by reading zeros."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def extents(self) -> Iterator[tuple[int, int]]:
        """See ``Content``."""
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: a hole up to the end
            at = os.lseek(self.fd, start, os.SEEK_HOLE)
            yield start, min(at, self.size) - start

    def read(self, offset: int, length: int) -> bytes:
        """See ``Content``."""
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                raise OSError("the file became shorter while it was read")
            data += more
        return data


class BytesContent:
    """Bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def extents(self) -> Iterator[tuple[int, int]]:
        """See ``Content``."""
        if self.size:
            yield 0, self.size

    def read(self, offset: int, length: int) -> bytes:
        """See ``Content``."""
        return self._data[offset : offset + length]


def archive(
    name: str, content: Content, mtime: int, extents: Sequence[tuple[int, int]] | None = None
) -> Iterator[bytes]:
    """The archive of one file, in pieces of at most 1 MiB. ``extents``: those of the content, when known already."""
    if extents is None:
        extents = list(content.extents())
    stored = sum(length for _offset, length in extents)
    head = b""
    if stored == content.size:
        head = ustar(name, stored, mtime, 0o644)
    else:
        directory, _slash, base = name.rpartition("/")
        # GNU tar learns how long the file is from an empty piece at its end.
        pieces = [*extents, (content.size, 0)]
        numbers = [len(pieces), *(number for piece in pieces for number in piece)]
        table = "".join(f"{number}\n" for number in numbers).encode("ascii")
        table += bytes(padding(len(table)))
        records = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name,
            "GNU.sparse.realsize": str(content.size),
        }  # fmt: skip
        head = pax(records, "././@PaxHeader")
        inside = f"{directory}/GNUSparseFile.0/{base}".lstrip("/")
        head += ustar(inside, len(table) + stored, mtime, 0o644) + table
    yield head
    for offset, length in extents:
        for at in range(offset, offset + length, _PIECE):
            yield content.read(at, min(_PIECE, offset + length - at))
    yield archive_end(len(head) + stored)
