"""The memory of a process that maps a file as QEMU does, copied while the process stands still."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from casemate.host.memory_map import FD, MappedMemory, find_memory
from casemate.wire.errors import HypervisorError

SIZE = 64 << 20
PROGRAM = f"""
import mmap, os, sys
fd = os.memfd_create("casemate-test")
os.ftruncate(fd, {SIZE})
os.pwrite(fd, b"a" * 8192, 0)
os.pwrite(fd, b"b" * 4096, {SIZE} - 4096)
os.dup2(fd, {FD})
memory = mmap.mmap(fd, {SIZE}, flags=getattr(mmap, sys.argv[1]), prot=mmap.PROT_READ | mmap.PROT_WRITE)
memory[4096:4100] = b"mine"          # in a page that the file has
memory[1 << 20:(1 << 20) + 9000] = b"c" * 9000  # in pages that it has not
_read = memory[2 << 20]              # read alone: stays the file's
memory[5 << 20] = 0                  # its own, and empty
print("there", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["MAP_SHARED", "MAP_PRIVATE"])
def test_a_copy_has_what_the_process_sees(kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        memory = find_memory(process.pid, SIZE)
        assert memory.private is (kind == "MAP_PRIVATE")
        target = os.memfd_create("copy")
        try:
            memory.copy_to(target)
            with mmap.mmap(target, SIZE, prot=mmap.PROT_READ) as copy:
                assert copy[:4096] == b"a" * 4096
                assert copy[4096:8192] == b"mine" + b"a" * 4092
                assert copy[1 << 20 : (1 << 20) + 9001] == b"c" * 9000 + b"\0"
                assert copy[SIZE - 4096 :] == b"b" * 4096
                assert copy.find(b"\1") == -1 and not any(copy[3 << 20 : 6 << 20])
        finally:
            os.close(target)
        with pytest.raises(HypervisorError, match="no file"):
            find_memory(process.pid, SIZE + 4096)
        process.kill()


def test_what_a_process_has_put_in_place_of_its_memory_is_not_copied() -> None:
    reading, writing = os.pipe()
    other = os.memfd_create("larger")
    os.ftruncate(other, 2 * SIZE)
    target = os.memfd_create("copy")
    try:
        for wrong in (reading, other):
            os.dup2(wrong, FD)
            with pytest.raises(HypervisorError, match="not what it was started with"):
                MappedMemory(os.getpid(), ((0, SIZE, 0),), private=False).copy_to(target)
            assert os.fstat(target).st_size == 0
            os.close(FD)
    finally:
        for fd in (reading, writing, other, target):
            os.close(fd)


def test_a_process_without_such_a_file_cannot_be_copied() -> None:
    with pytest.raises(HypervisorError, match="no file"):
        find_memory(os.getpid(), SIZE)
