"""Finds and copies the memory of a running machine whose QEMU has it as a file (guest_memory.py).

A machine that booted, or has a copy of an image, maps its file shared: the file has everything. One that shares an
image's pages maps the file private: what it has written lies in pages of its own, of which the kernel tells (proc(5):
pagemap), and is read from the process.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from casemate.host.files import copy_data
from casemate.wire.errors import HypervisorError

FD = 199
"""Descriptor of the memory in QEMU: far above those that libvirt hands over, below the limit of open files."""
_PAGE = mmap.PAGESIZE
_ENTRY = 8
"""Bytes of a page's entry in pagemap; the highest has the flags."""
_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20
_OWN = bytes(bool(flags & (_PRESENT | _SWAPPED)) and not flags & _OF_FILE for flags in range(256))
"""By the flags of a page: 1 where it is the process's own, written since it was mapped."""
_RUN = re.compile(rb"\x01+")
_MAPPED = re.compile(r"(\w+)-(\w+) rw-([sp]) (\w+) \S+ \d+ +/memfd:casemate-")


@dataclass(frozen=True, slots=True)
class MappedMemory:
    """Where a QEMU has the memory of its machine."""

    pid: int
    pieces: tuple[tuple[int, int, int], ...]
    """First address, length and offset in the file of each mapping (bytes)."""
    private: bool

    def copy_to(self, target: int) -> None:
        """Make an empty file a copy of the memory, while the machine stands still; OSError."""
        # A guest that has taken its QEMU over may have put anything there: a pipe would hold us for ever.
        source = os.open(f"/proc/{self.pid}/fd/{FD}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode) or status.st_size != sum(
                length for _at, length, _offset in self.pieces
            ):
                raise HypervisorError("Its memory is not what it was started with")
            copy_data(source, target)
        finally:
            os.close(source)
        if self.private:
            self._copy_own_pages(target)

    def _copy_own_pages(self, target: int) -> None:
        size = os.fstat(target).st_size
        with (
            open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as pagemap,
            open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory,
            mmap.mmap(target, size) as copy,
            memoryview(copy) as view,
        ):
            for address, length, offset in self.pieces:
                entries = _read(pagemap.fileno(), length // _PAGE * _ENTRY, address // _PAGE * _ENTRY)
                for run in _RUN.finditer(entries[_ENTRY - 1 :: _ENTRY].translate(_OWN)):
                    at, end = run.start() * _PAGE, run.end() * _PAGE
                    while at < end:
                        with view[offset + at : offset + end] as part:
                            count = os.preadv(memory.fileno(), [part], address + at)
                        if count == 0:
                            raise OSError("the memory of the machine ended while it was read")
                        at += count


def find_memory(pid: int, size: int) -> MappedMemory:
    """The memory of a machine of so many bytes; HypervisorError where it is no file."""
    found = [match for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if (match := _MAPPED.match(line))]
    pieces = tuple((int(one[1], 16), int(one[2], 16) - int(one[1], 16), int(one[4], 16)) for one in found)
    if not found or sum(length for _address, length, _offset in pieces) != size:
        raise HypervisorError("Its memory is no file: it was started by an earlier version, or always boots")
    return MappedMemory(pid, pieces, private=found[0][3] == "p")


def _read(fd: int, count: int, offset: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = os.pread(fd, count - len(data), offset + len(data))
        if not part:
            raise OSError("the kernel's list of pages is too short")
        data += part
    return bytes(data)
