"""Checks the header of a qcow2 file that a machine could write, before any tool of the host opens the file (pure).

A hijacked QEMU can write any file of the host into the header of its own disk, as backing or data file; a tool that
followed that would read or write the file for it. So tools get only files whose header says what we wrote into it.
Source: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.wire.errors import StorageError

HEADER_BYTES = 65536
"""Bytes that are read. The headers that we make end within the first cluster of 64 KiB."""

_FIXED = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_CLUSTER = 65536
_DIRTY = 1
"""The one incompatible feature that may be set: QEMU sets it while the image is open, and a crash leaves it."""
_END, _BACKING_FORMAT, _FEATURE_NAMES = 0, 0xE2792ACA, 0x6803F857


def check_header(untrusted_header: bytes, backing: Path | None, what: str) -> None:
    """StorageError unless this is a plain qcow2 of ours over exactly ``backing`` (None: over nothing)."""

    def refuse(why: str) -> StorageError:
        return StorageError(f"{what} is not as we made it: {why}. It is left as it is")

    if len(untrusted_header) < _FIXED.size:
        raise refuse("it is too short")
    (magic, version, name_at, name_size, cluster_bits, _size, encryption, _l1_size, _l1_at, _refcounts_at,
     _refcount_clusters, _snapshots, _snapshots_at, incompatible, _compatible, _autoclear, _order, length,
    ) = _FIXED.unpack_from(untrusted_header)  # fmt: skip
    if magic != b"QFI\xfb" or version != 3 or cluster_bits != 16:
        raise refuse("it is no qcow2 file of version 3 with clusters of 64 KiB")
    if encryption or incompatible & ~_DIRTY:
        raise refuse("its header asks for features that we do not use")
    _check_extensions(untrusted_header, length, name_at or HEADER_BYTES, refuse)
    name = untrusted_header[name_at : name_at + name_size] if name_at else b""
    expected = b"" if backing is None else bytes(backing)
    if name != expected or name_size != len(expected):
        raise refuse("it names another file as the one below it")


def _check_extensions(header: bytes, at: int, end: int, refuse: Callable[[str], StorageError]) -> None:
    while at + 8 <= min(end, len(header)):
        kind, size = struct.unpack_from(">II", header, at)
        if kind == _END:
            return
        if kind not in (_BACKING_FORMAT, _FEATURE_NAMES) or at + 8 + size > len(header):
            raise refuse("its header has an extension that we do not use")
        if kind == _BACKING_FORMAT and header[at + 8 : at + 8 + size] != b"qcow2":
            raise refuse("it names another format below it")
        at += 8 + (size + 7) // 8 * 8
    raise refuse("its header has no end")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a header says that decides what may be done to a file; only to be used after a check of the file."""

    size: int
    """Bytes that a machine sees."""
    layered: bool
    """Whether the file lies over another."""
    metadata_end: int
    """Where the tables of a new file end, in bytes. A file that is not longer than this has no data of its own."""


def facts(path: Path) -> Facts:
    """The facts of a file's header."""
    with open(path, "rb") as file:
        header = file.read(_FIXED.size)
    if len(header) < _FIXED.size:
        raise StorageError(f"{path} is no qcow2 file")
    fields = _FIXED.unpack(header)
    name_at, size, l1_size, l1_at = fields[2], fields[5], fields[7], fields[8]
    return Facts(size, bool(name_at), l1_at + (l1_size * 8 + _CLUSTER - 1) // _CLUSTER * _CLUSTER)


def untouched(path: Path) -> bool:
    """Whether nothing was written to a layer since it was made."""
    found = facts(path)
    return found.layered and path.stat().st_size <= found.metadata_end


def check_file(path: Path, backing: Path | None) -> None:
    """The same for a file."""
    try:
        with open(path, "rb") as file:
            untrusted_header = file.read(HEADER_BYTES)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    check_header(untrusted_header, backing, str(path))
