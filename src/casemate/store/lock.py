"""Reader/writer lock between processes and threads, on two sidecar files that are never replaced.

``FILE.lock`` is the lock. ``FILE.lock.gate`` is a turnstile in front of it, which keeps readers and writers from
starving each other::

    free:   everybody ──────────────────────────> FILE.lock
    taken:  everybody ──> FILE.lock.gate ───────> FILE.lock        readers pass the gate together, a writer alone

A process that finds the lock taken takes the gate first and waits for the lock while it holds the gate. It sets the
first byte of the gate's file meanwhile. While the byte is set, newcomers go through the gate too, so that nobody
overtakes. The byte only saves time, the locks alone decide: a byte that a killed process left set costs the next one a
few microseconds.

The data file itself is never locked. A rename replaces it, and a lock of a file without a name protects nothing.

The lock is not re-entrant, and a program that is started under it must not need it. ``lock_posix.py`` (flock) and
``lock_windows.py`` (LockFileEx) have what is asked of the operating system.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType

from casemate.store import file_system, order
from casemate.wire.errors import LockTimeoutError, StoreError, printable

if sys.platform == "win32":
    from casemate.store import lock_windows as system
else:
    from casemate.store import lock_posix as system

DEFAULT_TIMEOUT = 60.0
"""Limit of the store (seconds): wait for the lock, unless told otherwise."""
_FIRST_WAIT, _LONGEST_WAIT = 0.0002, 0.005
"""Seconds between two attempts: a lock is held for some milliseconds, and each attempt is one system call."""

_all: weakref.WeakSet[FileLock] = weakref.WeakSet()
_ident, _try_lock, _unlock, _is_gone = threading.get_ident, system.try_lock, system.unlock, system.is_gone


class _Files:
    """The open files of one holder. Each holder has its own, so that threads are to each other like processes."""

    __slots__ = ("exclusive", "gate", "lock", "waiting")

    def __init__(self, lock: Path, gate: Path) -> None:
        self.exclusive = False
        self.lock = system.open_file(lock)
        try:
            self.gate = system.open_file(gate)
            try:
                # The byte is mapped and written. A byte of a hole has no block yet, and a write to it on a full disk
                # is SIGBUS, which ends the process; a written byte has its block, or fails here with ENOSPC.
                if os.fstat(self.gate).st_size < 1:
                    os.write(self.gate, b"\0")
                self.waiting = mmap.mmap(self.gate, 1)
            except BaseException:
                os.close(self.gate)
                raise
        except BaseException:
            os.close(self.lock)
            raise

    def close(self) -> None:
        """Close them; what was locked is free then."""
        if not self.waiting.closed:
            self.waiting.close()
            os.close(self.gate)
            os.close(self.lock)

    def __del__(self) -> None:
        if hasattr(self, "waiting"):
            self.close()


class FileLock:
    """The lock of one file; make one per process and file, use it from any thread."""

    def __init__(self, file: Path) -> None:
        self.lock_file = file.with_name(file.name + ".lock")
        self.gate_file = file.with_name(file.name + ".lock.gate")
        self._checked = False
        """Whether the directory is known to be on a file system whose locks can be relied on."""
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._spare: list[_Files] = []
        self._used: dict[int, _Files] = {}
        """The open files of each thread that holds the lock, by the thread's number."""
        self._writers = threading.Lock()
        """Queue of this process's writers: they wait for each other here, without polling."""

    def shared(self, timeout: float = DEFAULT_TIMEOUT) -> Hold:
        """A context in which the lock is held together with other readers."""
        return Hold(self, False, timeout)

    def exclusive(self, timeout: float = DEFAULT_TIMEOUT) -> Hold:
        """A context in which the lock is held alone."""
        return Hold(self, True, timeout)

    @property
    def held(self) -> bool:
        """Whether the calling thread holds the lock."""
        return _ident() in self._used

    def _open(self) -> _Files:
        if not self._checked:
            file_system.require_local(self.lock_file.parent)
            self._checked = True
        try:
            return _Files(self.lock_file, self.gate_file)
        except OSError as error:
            raise StoreError(f"{self.lock_file}: {error.strerror}") from error

    def _wait(self, files: _Files, exclusive: bool, timeout: float, deadline: float) -> None:
        """Take the lock by way of the gate."""
        try:
            self._poll(files, files.gate, exclusive, timeout, deadline)
            self._poll(files, files.lock, exclusive, timeout, deadline)
            files.waiting[0] = 0  # whoever still waits sets it again at the next attempt
            _unlock(files.gate)
        except OSError as error:
            raise StoreError(f"{self.lock_file}: {error.strerror}") from error

    def _poll(self, files: _Files, fd: int, exclusive: bool, timeout: float, deadline: float) -> None:
        # The system does not tell when a lock becomes free, unless one blocks for it; and flock(2) that blocks has no
        # timeout. Hence attempts after short, growing waits.
        wait = _FIRST_WAIT
        while not _try_lock(fd, exclusive):
            files.waiting[0] = 1
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockTimeoutError(self._message(self._holders(files), timeout))
            time.sleep(min(wait, left))
            wait = min(wait * 2, _LONGEST_WAIT)

    def _message(self, holders: str, timeout: float) -> str:
        return f"{self.lock_file} is not free after {timeout:g} s; held by {holders}"

    def _holders(self, files: _Files) -> str:
        found = [f"process {pid} ({command_of(pid)})" for pid in system.owners((files.lock, files.gate))]
        if self._used:
            found.append(self._ourselves())
        return ", ".join(found) or "a process that cannot be seen from here"

    def _ourselves(self) -> str:
        return f"process {os.getpid()} (another thread of this one)"

    def close(self) -> None:
        """Close the lock's files; the next use opens them again."""
        while self._spare:
            self._spare.pop().close()

    def after_fork(self) -> None:
        """In a forked child: close the copies of the parent's descriptors.

        A flock belongs to the open file, not to the process: the parent could not give it back while a copy is open.
        """
        files = [*self._spare, *self._used.values()]
        self._reset()
        for one in files:
            one.close()


class Hold:
    """One turn at a lock, as a context manager; entering it raises LockTimeoutError or StoreError."""

    __slots__ = ("_exclusive", "_lock", "_timeout", "_token")

    def __init__(self, lock: FileLock, exclusive: bool, timeout: float) -> None:
        self._lock = lock
        self._exclusive = exclusive
        self._timeout = timeout

    def __enter__(self) -> None:
        lock, exclusive = self._lock, self._exclusive
        thread = _ident()
        if thread in lock._used:
            raise StoreError(f"{lock.lock_file}: this thread holds the lock already")
        if order.ENABLED:
            self._token = order.entering(order.STORE, str(lock.lock_file))
        try:
            if exclusive:
                self._queue()
            try:
                lock._used[thread] = self._take()
            except BaseException:
                if exclusive:
                    lock._writers.release()
                raise
        except BaseException:
            if order.ENABLED:
                order.left(self._token)
            raise

    def _queue(self) -> None:
        lock, timeout = self._lock, self._timeout
        if not lock._writers.acquire(False):
            deadline = time.monotonic() + timeout
            if not lock._writers.acquire(timeout=max(0.0, timeout)):
                raise LockTimeoutError(lock._message(lock._ourselves(), timeout))
            self._timeout = max(0.0, deadline - time.monotonic())

    def _take(self) -> _Files:
        lock, exclusive = self._lock, self._exclusive
        deadline = 0.0
        while True:
            try:
                files = lock._spare.pop()
            except IndexError:
                files = lock._open()
            try:
                if files.waiting[0] or not _try_lock(files.lock, exclusive):
                    deadline = deadline or time.monotonic() + self._timeout
                    lock._wait(files, exclusive, self._timeout, deadline)
                if not _is_gone(files.lock):
                    files.exclusive = exclusive
                    return files
            except BaseException:
                files.close()  # gives back whatever was taken
                raise
            files.close()  # somebody removed the lock file, and others lock the new one: try again with that

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock = self._lock
        files = lock._used.pop(_ident(), None)
        if files is not None:  # None in a child that was forked under the lock: after_fork() has closed its copies
            _unlock(files.lock)
            lock._spare.append(files)
            if files.exclusive:
                lock._writers.release()
        if order.ENABLED:
            order.left(self._token)


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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
