"""Writes an initramfs: a cpio archive in the "newc" format, byte for byte the same for the same content (pure)."""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive; ``mode`` with the type bits, ``device`` for a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | mode, data)


def character_device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device node; in an archive nobody needs to be root to make one."""
    return Entry(name, stat.S_IFCHR | mode, b"", (major, minor))


def archive(entries: list[Entry]) -> bytes:
    """The whole archive. All is owned by root and dated 1970. Source of the format: cpio(5)."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode("ascii") + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (
            number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0,
        )  # fmt: skip
        out += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        out += bytes(-len(out) % 4) + entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)
