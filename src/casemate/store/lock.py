"""Reader/writer lock between processes: flock on two sidecar files that are never replaced.

``FILE.lock`` is the lock. ``FILE.lock.gate`` keeps writers from starving: a reader passes it shared, a writer holds
it exclusively while it waits for the lock, so no reader overtakes a waiting writer. The data file itself is never
locked: a rename replaces it, and a lock of an unlinked file protects nothing.

Threads of one process exclude each other, also two readers. Nothing may be spawned under the lock that needs it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.wire.errors import LockTimeoutError, StoreError, printable

DEFAULT_TIMEOUT = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 0.0002, 0.005

_all: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """The lock of one file; open it once per process and file, use it from any thread. Not re-entrant."""

    def __init__(self, file: Path) -> None:
        self.lock_file = file.with_name(file.name + ".lock")
        self.gate_file = file.with_name(file.name + ".lock.gate")
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._fds: tuple[int, int] | None = None
        self._threads = threading.Lock()
        self._owner: int | None = None

    @contextmanager
    def shared(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._hold(fcntl.LOCK_SH, timeout):
            yield

    @contextmanager
    def exclusive(self, timeout: float = DEFAULT_TIMEOUT) -> Iterator[None]:
        """Hold the lock alone."""
        with self._hold(fcntl.LOCK_EX, timeout):
            yield

    @property
    def held(self) -> bool:
        """Whether the calling thread holds the lock."""
        return self._owner == threading.get_ident()

    @contextmanager
    def _hold(self, mode: int, timeout: float) -> Iterator[None]:
        if self.held:
            raise StoreError(f"{self.lock_file}: this thread holds the lock already")
        deadline = time.monotonic() + timeout
        if not self._threads.acquire(timeout=max(0.0, timeout)):
            raise LockTimeoutError(self._message(f"process {os.getpid()} (another thread of this one)", timeout))
        try:
            lock, gate = self._open()
            self._owner = threading.get_ident()
            try:
                self._take(gate, mode, deadline, timeout)
                try:
                    self._take(lock, mode, deadline, timeout)
                finally:
                    fcntl.flock(gate, fcntl.LOCK_UN)
                try:
                    yield
                finally:
                    if self._fds is not None:  # a child forked under the lock has closed its copies
                        fcntl.flock(lock, fcntl.LOCK_UN)
            finally:
                self._owner = None
        finally:
            if self._threads.locked():
                self._threads.release()

    def _open(self) -> tuple[int, int]:
        if self._fds is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                lock = os.open(self.lock_file, flags, 0o660)
                try:
                    gate = os.open(self.gate_file, flags, 0o660)
                except OSError:
                    os.close(lock)
                    raise
            except OSError as error:
                raise StoreError(f"{self.lock_file}: {error.strerror}") from error
            self._fds = (lock, gate)
        return self._fds

    def _take(self, fd: int, mode: int, deadline: float, timeout: float) -> None:
        # flock has no timeout of its own, and no event tells that a lock became free: hence short, growing waits.
        wait = _FIRST_WAIT
        while True:
            try:
                fcntl.flock(fd, mode | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise StoreError(f"{self.lock_file}: {error.strerror}") from error
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockTimeoutError(self._message(self._holders(), timeout))
            time.sleep(min(wait, left))
            wait = min(wait * 2, _LONGEST_WAIT)

    def _message(self, holders: str, timeout: float) -> str:
        return f"{self.lock_file} is not free after {timeout:g} s; held by {holders}"

    def _holders(self) -> str:
        if self._fds is None:
            return "nobody any more"
        inodes = {os.fstat(fd).st_ino for fd in self._fds}
        found = [f"process {pid} ({command_of(pid)})" for pid in flock_owners(inodes)]
        return ", ".join(found) or "a process that cannot be seen from here"

    def close(self) -> None:
        """Close the lock's files; the next use opens them again."""
        if self._fds is not None:
            for fd in self._fds:
                os.close(fd)
            self._fds = None

    def after_fork(self) -> None:
        """In a forked child: let go of the parent's lock, which lives as long as any copy of its descriptor."""
        fds = self._fds
        self._reset()
        for fd in fds or ():
            os.close(fd)


def flock_owners(inodes: set[int]) -> list[int]:
    """Processes that hold a flock on one of these inodes, as the kernel lists them."""
    owners = []
    try:
        lines = Path("/proc/locks").read_text("ascii", "replace").splitlines()
    except OSError:
        return []
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] in map(str, inodes):
            pid = int(words[4]) if words[4].isascii() and words[4].isdecimal() else 0
            if pid and pid != os.getpid() and pid not in owners:
                owners.append(pid)
    return owners


def command_of(pid: int) -> str:
    """The command line of a process, for a message."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    return printable(raw.replace(b"\0", b" ").decode("utf-8", "replace").strip(), 120) or "no command line"


def _after_fork_in_child() -> None:
    for lock in list(_all):
        lock.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
