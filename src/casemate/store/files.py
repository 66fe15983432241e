"""The system calls of a save, one method each, so that a test of crashes can end a process before each of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class Files:
    """The file system, as the store uses it. Errors are OSError."""

    def create(self, path: Path) -> int:
        """A new file that only we may use, open for writing; its descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of ``data``; how much."""
        return os.write(fd, data)

    def set_owner(self, fd: int, mode: int, group: int) -> None:
        """Give a file a mode, and a group unless that is -1."""
        if sys.platform != "win32":
            if group not in (-1, os.fstat(fd).st_gid):
                os.fchown(fd, -1, group)
            os.fchmod(fd, mode)

    def sync(self, fd: int) -> None:
        """Have the content on the disk when this returns (fsync)."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def link(self, path: Path, new: Path) -> None:
        """A second name for a file."""
        new.hardlink_to(path)

    def rename(self, path: Path, new: Path) -> None:
        """Give a file another name, in place of what has it."""
        path.replace(new)

    def sync_directory(self, path: Path) -> None:
        """Have the names in a directory on the disk: a rename survives a power failure only after this."""
        if sys.platform != "win32":
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def remove(self, path: Path) -> None:
        """Take a name away; absent is fine."""
        path.unlink(missing_ok=True)
