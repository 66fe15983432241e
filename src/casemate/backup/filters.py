"""Compression filters: what a backup may name, undone in bounded steps.

A small piece of compressed data can stand for gigabytes. So output is asked for in bounded amounts, and only as much as
the reader of the archive inside takes.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from casemate.backup.errors import DamagedError, RefusedError
from casemate.backup.primitives import ZstdError, zstd_compressor, zstd_decompressor

_OUT = 1 << 18
"""Bytes of output asked for at once."""
MAX_MEMORY = 256 << 20
"""Limit of a backup (bytes): memory that a decompressor may take; ``xz -9`` needs 65 MiB."""
_ZSTD_WINDOW = 1 << 27
"""Largest window of zstd without ``--long``."""

Pieces = Iterator[bytes | memoryview]


class _Decompressor(Protocol):
    """What the modules of the standard library have in common, made equal where they differ."""

    def decompress(self, data: bytes, most: int, /) -> bytes: ...

    @property
    def finished(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, most)

    @property
    def finished(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data


class _Zlib(_Gzip):
    """``openssl enc -z``."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(15)


class _Bz2:
    def __init__(self, inner: bz2.BZ2Decompressor | lzma.LZMADecompressor | None = None) -> None:
        self._inner = bz2.BZ2Decompressor() if inner is None else inner

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._inner.decompress(data, most)

    @property
    def finished(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return self._inner.needs_input

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data


class _Xz(_Bz2):
    def __init__(self) -> None:
        super().__init__(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY))


class _Lzma(_Bz2):
    def __init__(self) -> None:
        super().__init__(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_MEMORY))


def _members(pieces: Pieces, make: Callable[[], _Decompressor], what: str) -> Iterator[bytes]:
    """Undo a filter whose streams may follow one another, as those of parallel compressors do."""
    decompressor: _Decompressor | None = None
    try:
        for piece in pieces:
            data = bytes(piece)
            while data or (decompressor is not None and not decompressor.needs_input):
                if decompressor is None:
                    decompressor = make()
                if out := decompressor.decompress(data, _OUT):
                    yield out
                data = b""
                if decompressor.finished:
                    data, decompressor = decompressor.unused, None
    except (OSError, zlib.error, lzma.LZMAError, EOFError, MemoryError) as error:
        raise DamagedError(f"{what} cannot be decompressed: {error}") from error
    if decompressor is not None:
        raise DamagedError(f"{what} ends in the midst of its compressed data")


def _zstd(pieces: Pieces, what: str) -> Iterator[bytes]:
    """The library's bounded reader does not tell a cut stream from its end. So the frames are walked block by block
    (RFC 8878, section 3.1): a block never expands beyond 128 KiB, and the last one is marked."""
    source = Source(pieces, what)
    try:
        while magic := source.read(4):
            if magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50:  # a frame to be skipped
                source.skip(int.from_bytes(source.exactly(4), "little"))
                continue
            decompressor = zstd_decompressor(_ZSTD_WINDOW)
            flags = source.exactly(1)
            single, checksum = flags[0] & 0x20, flags[0] & 0x04
            rest = (0, 1, 2, 4)[flags[0] & 3] + (0 if single else 1) + (1 if single else 0, 2, 4, 8)[flags[0] >> 6]
            out = decompressor.decompress(magic + flags + source.exactly(rest))
            while True:
                head = source.exactly(3)
                value = int.from_bytes(head, "little")
                size = 1 if value >> 1 & 3 == 1 else value >> 3
                if size > 128 * 1024:
                    raise DamagedError(f"{what} cannot be decompressed: a block is too large")
                out += decompressor.decompress(head + source.exactly(size))
                if out:
                    yield out
                out = b""
                if value & 1:
                    break
            if checksum and (out := decompressor.decompress(source.exactly(4))):
                yield out
    except ZstdError as error:
        raise DamagedError(f"{what} cannot be decompressed: {error}") from error


class Source:
    """Pieces of bytes as something to read from. DamagedError when they end too early."""

    def __init__(self, pieces: Pieces, what: str) -> None:
        self._pieces = pieces
        self._buffer = memoryview(b"")
        self.what = what

    def some(self, most: int) -> memoryview:
        """At most so many bytes, at least one; empty at the end. Good until the next call."""
        while not self._buffer:
            piece = next(self._pieces, None)
            if piece is None:
                return self._buffer
            self._buffer = memoryview(piece)
        out, self._buffer = self._buffer[:most], self._buffer[most:]
        return out

    def read(self, count: int) -> bytes:
        """So many bytes, or nothing at the end."""
        out = bytes(self.some(count))
        return out + self.exactly(count - len(out)) if out and len(out) < count else out

    def exactly(self, count: int) -> bytes:
        """So many bytes."""
        out = b""
        while len(out) < count:
            more = self.some(count - len(out))
            if not more:
                raise DamagedError(f"{self.what} ends too early")
            out += more
        return out

    def skip(self, count: int) -> None:
        """Leave so many bytes out."""
        while count:
            more = self.some(count)
            if not more:
                raise DamagedError(f"{self.what} ends too early")
            count -= len(more)


_GZIP, _BZIP2 = "gzip", "bzip2"
_KINDS: Mapping[str, Callable[[], _Decompressor]] = MappingProxyType(
    {"gzip": _Gzip, "pigz": _Gzip, "bzip2": _Bz2, "pbzip2": _Bz2, "xz": _Xz, "lzma": _Lzma}
)
_ZSTD = ("zstd", "zstdmt")
NAMES = (*_KINDS, *_ZSTD)
"""Filters that a header may name. They are the names of programs; here no program is run."""


def check(name: str) -> str:
    """The name of a filter; RefusedError when it is not known."""
    if name not in NAMES:
        raise RefusedError(f"The compression filter {name!r} is not known here; known are {', '.join(NAMES)}")
    return name


def undo(name: str, pieces: Pieces, what: str) -> Iterator[bytes]:
    """What was compressed by the filter; DamagedError when it was not, or is cut."""
    if name in _ZSTD:
        return _zstd(pieces, what)
    return _members(pieces, _KINDS[name], what)


def undo_volume(pieces: Pieces, compressed: bool, what: str) -> Iterator[bytes | memoryview]:
    """The same for a volume of version 2, which does not say how it was compressed: by gzip, by zlib, or not at all."""
    first = next(pieces, b"")

    def all_pieces() -> Pieces:
        yield first
        yield from pieces

    start = bytes(first[:2])
    if start == b"\x1f\x8b":
        return _members(all_pieces(), _Gzip, what)
    if not compressed and start[:1] == b"\x78":
        return _members(all_pieces(), _Zlib, what)
    return all_pieces()


def compressor(name: str) -> Callable[[bytes | memoryview], bytes]:
    """A filter for writing: call it with data, and with nothing at the end. RefusedError unless it can be written."""
    if name == _GZIP:
        packed = zlib.compressobj(6, zlib.DEFLATED, 31)
    elif name == _BZIP2:
        packed = bz2.BZ2Compressor()  # type: ignore[assignment]
    elif name == "xz":
        packed = lzma.LZMACompressor()  # type: ignore[assignment]
    elif name in _ZSTD:
        packed = zstd_compressor()
    else:
        raise RefusedError(f"Backups cannot be written with the filter {name!r}; possible are gzip, bzip2, xz, zstd")
    return lambda data: packed.compress(data) if data else packed.flush()
