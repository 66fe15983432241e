"""What ``lock.py`` asks of a POSIX system: flock(2).

Such a lock belongs to the open file, not to the process. So threads with open files of their own exclude each other
too.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

_TAKE = {False: fcntl.LOCK_SH | fcntl.LOCK_NB, True: fcntl.LOCK_EX | fcntl.LOCK_NB}
_flock, _UNLOCK = fcntl.flock, fcntl.LOCK_UN


def open_file(path: Path) -> int:
    """A lock file, made if need be; never passed on to a program."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)


def try_lock(fd: int, exclusive: bool) -> bool:
    """Take the lock if it is free; False where another holds it."""
    try:
        _flock(fd, _TAKE[exclusive])
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
            return False
        raise
    return True


def unlock(fd: int) -> None:
    """Give the lock back."""
    _flock(fd, _UNLOCK)


def is_gone(fd: int) -> bool:
    """Whether the file was removed or replaced: a lock of it means nothing to those who come now."""
    return os.fstat(fd).st_nlink == 0


def owners(fds: Iterable[int]) -> list[int]:
    """Other processes that hold a lock of one of these files, as the kernel lists them."""
    inodes = {str(os.fstat(fd).st_ino) for fd in fds}
    try:
        lines = Path("/proc/locks").read_text("ascii", "replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] in inodes:
            pid = int(words[4]) if words[4].isascii() and words[4].isdecimal() else 0
            if pid and pid != os.getpid() and pid not in found:
                found.append(pid)
    return found
