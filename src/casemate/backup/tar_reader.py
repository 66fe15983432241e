"""The archive inside: one file of a qube in GNU's or POSIX' sparse format, given to a sink as data at offsets.

Sizes and the map of holes come from whoever made the backup. They are checked against the size that the volume is
declared to have before the sink gets a byte.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from casemate.backup.errors import DamagedError, RefusedError
from casemate.backup.filters import Source
from casemate.backup.tar_header import (
    BLOCK,
    Header,
    gnu_continued,
    gnu_sparse,
    gnu_sparse_more,
    padding,
    parse,
    pax_records,
)
from casemate.wire.errors import printable

MAX_PIECES = 1 << 22
"""Limit of a backup (pieces): data between holes of one file. A map of so many takes 64 MiB."""
_MAX_EXTENDED = 1 << 20
_REGULAR = ("0", "\0", "7")


class Sink(Protocol):
    """Takes the content of one file. What is not written is a hole."""

    def begin(self, size: int) -> None:
        """The file has so many bytes with its holes. Called once, before the first byte."""

    def write(self, offset: int, data: memoryview) -> None:
        """Bytes of the file, in ascending order. Good during the call only."""


@dataclass(slots=True)
class Entry:
    """An entry of the archive. ``extents`` has offset and length of each piece of data that follows, ascending."""

    name: str
    kind: str
    size: int
    extents: array[int]


@contextmanager
def _damaged(what: str) -> Iterator[None]:
    """A header that is refused in here makes one file damaged; of the outer archive it would end the reading."""
    try:
        yield
    except RefusedError as error:
        raise DamagedError(f"{what}: {error}") from None


class Reader:
    """Entries of one archive; ``copy`` or ``skip`` the data of each before the next one is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._what = source.what

    def entries(self) -> Iterator[Entry]:
        """The entries in their order, until the end of the archive, which must be there. Raises DamagedError."""
        zeros = 0
        extended: dict[str, str] = {}
        long_name = ""
        while block := self._source.read(BLOCK):
            with _damaged(self._what):
                header = parse(block)
            if header is None:
                zeros += 1
                continue
            if zeros:
                raise DamagedError(f"{self._what}: there is something after the end of the archive")
            if header.kind in ("x", "g"):
                extended.update(self._records(header))
            elif header.kind == "L":
                long_name = self._long_name(header)
            else:
                yield self._entry(header, extended, long_name)
                extended, long_name = {}, ""
        if zeros < 2:
            raise DamagedError(f"{self._what}: the archive in it is cut")

    def copy(self, entry: Entry, sink: Sink) -> None:
        """Give the data of an entry to a sink."""
        sink.begin(entry.size)
        total = 0
        for at in range(0, len(entry.extents), 2):
            offset, length = entry.extents[at], entry.extents[at + 1]
            total += length
            while length:
                piece = self._source.some(length)
                if not piece:
                    raise DamagedError(f"{self._what} ends too early")
                sink.write(offset, piece)
                offset += len(piece)
                length -= len(piece)
        self._source.skip(padding(total))

    def skip(self, entry: Entry) -> None:
        """Leave the data of an entry out."""
        total = sum(entry.extents[1::2])
        self._source.skip(total + padding(total))

    # -- headers

    def _entry(self, header: Header, extended: dict[str, str], long_name: str) -> Entry:
        name = extended.get("GNU.sparse.name") or extended.get("path") or long_name or header.name
        stored = self._number(extended["size"]) if "size" in extended else header.size
        extents: array[int] = array("Q")
        if header.kind == "S":
            size = self._gnu_map(header, extents)
        elif header.kind in _REGULAR and any(key.startswith("GNU.sparse.") for key in extended):
            if (extended.get("GNU.sparse.major"), extended.get("GNU.sparse.minor")) != ("1", "0"):
                raise DamagedError(f"{self._what}: sparse format of GNU tar that is not known")
            size = self._number(extended.get("GNU.sparse.realsize", ""))
            stored -= self._posix_map(extents, stored)
        else:
            size = stored
            if stored:
                extents.extend((0, stored))
        self._check(extents, size, stored)
        return Entry(name, "0" if header.kind in (*_REGULAR, "S") else header.kind, size, extents)

    def _check(self, extents: array[int], size: int, stored: int) -> None:
        end = total = 0
        for at in range(0, len(extents), 2):
            offset, length = extents[at], extents[at + 1]
            if offset < end or offset + length > size:
                raise DamagedError(f"{self._what}: its map of holes is impossible")
            end = offset + length
            total += length
        if total != stored:
            raise DamagedError(f"{self._what}: its map of holes does not fit its data")

    def _add(self, extents: array[int], entries: list[tuple[int, int]]) -> None:
        for offset, length in entries:
            if length:
                extents.extend((offset, length))
        if len(extents) > 2 * MAX_PIECES:
            raise DamagedError(f"{self._what} has more than {MAX_PIECES} holes")

    def _gnu_map(self, header: Header, extents: array[int]) -> int:
        with _damaged(self._what):
            entries, size, more = gnu_sparse(header)
            self._add(extents, entries)
            while more:
                entries, more = gnu_sparse_more(self._source.exactly(BLOCK))
                self._add(extents, entries)
        return size

    def _posix_map(self, extents: array[int], stored: int) -> int:
        """The map at the start of the data: a count, then offset and length of each piece, a decimal number a line."""
        taken = 0
        rest = b""
        numbers: list[int] = []
        count = -1
        while count < 0 or len(numbers) < 2 * count:
            if taken >= stored:
                raise DamagedError(f"{self._what}: its map of holes is cut")
            lines = (rest + self._source.exactly(BLOCK)).split(b"\n")
            taken += BLOCK
            rest = lines.pop()
            for line in lines:
                if count < 0:
                    count = self._number(line.decode("ascii", "replace"))
                    if count > MAX_PIECES:
                        raise DamagedError(f"{self._what} has more than {MAX_PIECES} holes")
                elif len(numbers) < 2 * count:
                    numbers.append(self._number(line.decode("ascii", "replace")))
                else:
                    break  # what fills the block
            if len(rest) > 20 and (count < 0 or len(numbers) < 2 * count):
                raise DamagedError(f"{self._what}: its map of holes is malformed")
            if len(numbers) >= 1024:
                whole = len(numbers) & ~1
                count -= whole // 2
                self._add(extents, list(zip(numbers[:whole:2], numbers[1:whole:2], strict=True)))
                del numbers[:whole]
        self._add(extents, list(zip(numbers[::2], numbers[1::2], strict=True)))
        return taken

    def _number(self, text: str) -> int:
        if not text.isdecimal() or len(text) > 19:
            raise DamagedError(f"{self._what}: a tar header has a malformed number")
        return int(text)

    def _data(self, header: Header, most: int) -> bytes:
        if not 0 < header.size <= most:
            raise DamagedError(f"{self._what}: an extended tar header has {header.size} bytes")
        data = self._source.exactly(header.size)
        self._source.skip(padding(header.size))
        return data

    def _long_name(self, header: Header) -> str:
        return self._data(header, 4096).rstrip(b"\0").decode("utf-8", "backslashreplace")

    def _records(self, header: Header) -> dict[str, str]:
        data = self._data(header, _MAX_EXTENDED)
        with _damaged(self._what):
            return {key: value.decode("utf-8", "backslashreplace") for key, value in pax_records(data)}


def only_file(source: Source, name: str, most: int, sink: Sink) -> None:
    """Give the one file of an archive to a sink. DamagedError unless it is the only entry, regular, has this name, and
    at most ``most`` bytes."""
    reader = Reader(source)
    seen = False
    for entry in reader.entries():
        if seen:
            raise DamagedError(f"{source.what}: the archive in it has more than one entry")
        seen = True
        if entry.name != name:
            raise DamagedError(f"{source.what} contains {printable(entry.name, 80)}, not {name}")
        if entry.kind != "0":
            raise DamagedError(f"{source.what}: {name} is not a regular file in it (type {printable(entry.kind)})")
        if entry.size > most:
            raise DamagedError(f"{source.what}: the file in it has {entry.size} bytes; at most {most} are possible")
        reader.copy(entry, sink)
    if not seen:
        raise DamagedError(f"{source.what}: the archive in it is empty")


class Collected:
    """A sink for small files: ``data`` has the content."""

    def __init__(self) -> None:
        self.data = bytearray()

    def begin(self, size: int) -> None:
        """See ``Sink``."""
        self.data = bytearray(size)

    def write(self, offset: int, data: memoryview) -> None:
        """See ``Sink``."""
        self.data[offset : offset + len(data)] = data


def continued(volumes: Iterator[Iterator[bytes | memoryview]], what: str) -> Iterator[bytes | memoryview]:
    """One archive from the volumes of a multi-volume one (version 2): the header that repeats a file's name at the
    start of a further volume is left out. DamagedError when it does not continue where the last volume ended."""
    last = ("", 0)
    for number, pieces in enumerate(volumes):
        source = Source(pieces, what)
        if number:
            first = source.read(BLOCK)
            with _damaged(what):
                header = parse(first, without_magic=True) if len(first) == BLOCK else None
            if header is not None and header.kind == "M":
                here = (header.name, gnu_continued(header))
                if here[1] <= (last[1] if here[0] == last[0] else 0):
                    raise DamagedError(f"{what}: a volume does not continue the one before it")
                last = here
            else:
                yield first
        while piece := source.some(1 << 20):
            yield bytes(piece)
