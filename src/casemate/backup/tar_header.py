"""One block of a tar archive: its fields, read and written. Formats: POSIX ustar and GNU tar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from casemate.backup.errors import DamagedError, RefusedError

BLOCK = 512
RECORD = 20 * BLOCK
"""Tar writes whole records: a blocking factor of 20."""
_ZERO = bytes(BLOCK)
_SPACES = b" " * 8
_SUM_AT, _SUM_END = 148, 156
_GNU_ENTRIES = 386
"""Where an old GNU header has the first four entries of its sparse map."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header block says. ``block`` is all of it, for the fields that only GNU tar has."""

    name: str
    mode: int
    size: int
    kind: str
    gnu: bool
    block: bytes


def padding(size: int) -> int:
    """Bytes from the end of data to the next block."""
    return -size % BLOCK


def archive_end(written: int) -> bytes:
    """What ends an archive of so many bytes: two blocks of zeros, and more up to a whole record, as tar pads."""
    least = written + padding(written) + 2 * BLOCK
    return bytes(-(-least // RECORD) * RECORD - written)


class NoHeaderError(RefusedError):
    """There is something where a tar header should be."""


def parse(block: bytes, without_magic: bool = False) -> Header | None:
    """The header in a block of 512 bytes; None for a block of zeros. RefusedError when it is neither.

    ``without_magic``: GNU tar leaves the magic out of the header that continues a file in a further volume.
    """
    if block == _ZERO:
        return None
    magic = block[257:265]
    if magic not in (b"ustar\x0000", b"ustar  \0") and not (without_magic and magic == bytes(8)):
        raise NoHeaderError("There is something that is not a tar header")
    kept = number(block[_SUM_AT:_SUM_END])
    if kept != sum(block[:_SUM_AT]) + sum(_SPACES) + sum(block[_SUM_END:]):
        raise RefusedError("A tar header's checksum is wrong")
    gnu = magic == b"ustar  \0"
    name = block[:100].partition(b"\0")[0]
    prefix = b"" if gnu else block[345:500].partition(b"\0")[0]
    if prefix:
        name = prefix + b"/" + name
    text = name.decode("utf-8", "backslashreplace")
    return Header(text, number(block[100:108]), number(block[124:136]), chr(block[156]), gnu, block)


def number(field: bytes) -> int:
    """A number: octal digits, or binary when the first bit is set (GNU, for sizes from 8 GiB)."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40 or value >= 1 << 63:
            raise RefusedError("A tar header has a number that is negative or too large")
        return value
    text = field.strip(b" \0")
    if text.strip(b"01234567"):
        raise RefusedError("A tar header has a malformed number")
    return int(text, 8) if text else 0


def gnu_sparse(header: Header) -> tuple[list[tuple[int, int]], int, bool]:
    """(entries of the sparse map in the header, size of the file with its holes, whether more entries follow)."""
    block = header.block
    return _entries(block[_GNU_ENTRIES:], 4), number(block[483:495]), block[482] != 0


def gnu_sparse_more(block: bytes) -> tuple[list[tuple[int, int]], bool]:
    """The same of a block of further entries."""
    return _entries(block, 21), block[504] != 0


def _entries(data: bytes, count: int) -> list[tuple[int, int]]:
    out = []
    for at in range(0, 24 * count, 24):
        field = data[at : at + 12]
        if not field.strip(b" \0"):
            break
        out.append((number(field), number(data[at + 12 : at + 24])))
    return out


def gnu_continued(header: Header) -> int:
    """Offset in its file of what a header of a continued file (type M) is followed by."""
    return number(header.block[369:381])


def ustar(name: str, size: int, mtime: int, mode: int, kind: str = "0") -> bytes:
    """A POSIX header block; ``name`` is ASCII, at most 100 characters."""
    raw = name.encode("ascii")
    if len(raw) > 100:
        raise DamagedError(f"{name}: too long for a tar header")
    fields = (
        raw.ljust(100, b"\0"), _octal(mode, 8), _octal(0, 8), _octal(0, 8), _octal(size, 12), _octal(mtime, 12),
        _SPACES, kind.encode("ascii"), bytes(100), b"ustar\x0000", b"root".ljust(32, b"\0"),
        b"root".ljust(32, b"\0"), _octal(0, 8), _octal(0, 8), bytes(167),
    )  # fmt: skip
    block = b"".join(fields)
    return block[:_SUM_AT] + b"%06o\0 " % sum(block) + block[_SUM_END:]


def _octal(value: int, width: int) -> bytes:
    if value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


def pax(records: dict[str, str], name: str) -> bytes:
    """An extended header with these records, and the padding after it."""
    data = b"".join(_record(key, value) for key, value in records.items())
    return ustar(name, len(data), 0, 0o644, "x") + data + bytes(padding(len(data)))


def pax_records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(key, value) of each record of an extended header; RefusedError when it is malformed."""
    at = 0
    while at < len(data):
        digits, space, _rest = data[at : at + 8].partition(b" ")
        end = at + int(digits) if space and digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(data):
            raise RefusedError("An extended tar header is malformed")
        yield key.decode("utf-8", "backslashreplace"), value[:-1]
        at = end


def _record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:  # the length counts its own digits
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest
