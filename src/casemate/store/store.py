"""The collection of qubes in one file: snapshot() without a lock, read() shared, write() exclusive.

A save is a temporary file, fsync, rename, fsync of the directory: a process killed at any instant leaves the old
file or the new one. The previous file stays as ``qubes.xml.1``.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from casemate.model import invariants
from casemate.model.changes import Change
from casemate.model.system import System
from casemate.store import xml
from casemate.store.lock import DEFAULT_TIMEOUT, FileLock
from casemate.wire.errors import StoreError

_log = logging.getLogger(__name__)

Signature = tuple[int, int, int]
"""What tells two states of the file apart: inode, time of change in nanoseconds, size."""

Subscriber = Callable[[Sequence[Change]], None]


def _signature(status: os.stat_result) -> Signature:
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class Transaction:
    """One exclusive turn at the store. ``system`` is a copy of one's own; it is saved when the block ends well."""

    def __init__(self, store: Store, base: System, signature: Signature | None) -> None:
        self._store = store
        self._signature = signature
        self.system = base.copy()
        self.saved: list[Change] = []
        """What has reached the disk."""

    @property
    def changes(self) -> Sequence[Change]:
        """What has changed since the last save."""
        return self.system.changes

    def save(self) -> None:
        """Check and save now and keep the lock; nothing to do where nothing changed."""
        if not self.system.changes:
            return
        invariants.check(self.system)
        self.system.generation += 1
        announced, self.system.changes = self.system.changes, []
        snapshot = self.system
        self.system.frozen = True
        self._signature = self._store._replace(snapshot, self._signature)
        self.saved.extend(announced)
        self.system = snapshot.copy()


class Store:
    """The store in ``path``; one object per process and file, usable from any thread.

    ``snapshot()`` must not be changed. Subscribers are called after a commit, in the order of commits, in the
    thread of the writer; they must not write to the store and should only hand the changes on.
    """

    def __init__(self, path: Path, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.path = path
        self.timeout = timeout
        self._lock = FileLock(path)
        self._cache: tuple[Signature, System] | None = None
        self._subscribers: list[Subscriber] = []

    def subscribe(self, callback: Subscriber) -> None:
        """Have ``callback`` told the changes of each commit of this process."""
        self._subscribers.append(callback)

    def snapshot(self) -> System:
        """The system as it is on disk now, without any lock; cached while the file is the same. Not to be changed."""
        cache = self._cache
        try:
            if cache is not None and cache[0] == _signature(self.path.stat()):
                return cache[1]
            return self._load()[1]
        except FileNotFoundError:
            pass
        if self._lock.held:
            raise StoreError(f"{self.path}: the file is gone")
        self._create()
        return self._load()[1]

    @contextmanager
    def read(self, timeout: float | None = None) -> Iterator[System]:
        """The system, and nobody changes it on disk while the block runs."""
        self._prepare()
        with self._lock.shared(self.timeout if timeout is None else timeout):
            yield self.snapshot()

    @contextmanager
    def write(self, timeout: float | None = None) -> Iterator[Transaction]:
        """Change the system: all of the block is saved and announced, or none of it happened.

        No slow work belongs into the block. What ``Transaction.save`` saved inside it stays saved.
        """
        self._prepare()
        with self._lock.exclusive(self.timeout if timeout is None else timeout):
            self._clean()
            signature, system = self._current()
            transaction = Transaction(self, system, signature)
            try:
                yield transaction
                transaction.save()
            finally:
                if transaction.saved:
                    self._announce(transaction.saved)

    def _announce(self, changes: Sequence[Change]) -> None:
        for callback in self._subscribers:
            try:
                callback(changes)
            except Exception:
                _log.exception("a subscriber of the store failed; the commit stands")

    def _prepare(self) -> None:
        if not self.path.exists():
            self._create()

    def _create(self) -> None:
        """First use: write an initial system, unless another process was faster."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock.exclusive(self.timeout):
            if self.path.exists():
                return
            if self._previous.exists():
                raise StoreError(f"{self.path} is missing although {self._previous.name} exists; put one in place")
            self._clean()
            system = System.initial()
            system.frozen = True
            self._replace(system, None)

    @property
    def _previous(self) -> Path:
        return self.path.with_name(self.path.name + ".1")

    def _current(self) -> tuple[Signature, System]:
        cache = self._cache
        try:
            if cache is not None and cache[0] == _signature(self.path.stat()):
                return cache
            return self._load()
        except FileNotFoundError as error:
            raise StoreError(f"{self.path}: the file is gone") from error

    def _load(self) -> tuple[Signature, System]:
        try:
            with self.path.open("rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                data = file.read(xml.MAX_SIZE + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        system = xml.read(data, str(self.path))
        system.frozen = True
        self._cache = (signature, system)
        return self._cache

    def _clean(self) -> None:
        """Remove temporary files of killed writers; only the holder of the exclusive lock has any."""
        for stale in self.path.parent.glob(f".{self.path.name}.tmp-*"):
            stale.unlink(missing_ok=True)

    def _replace(self, system: System, expected: Signature | None) -> Signature:
        """Write a system under the exclusive lock; ``expected`` is the file it was made from (None: there is none)."""
        data = xml.write(system)
        directory = self.path.parent
        temporary = directory / f".{self.path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            mode, group = 0o600, -1
            if expected is not None:
                status = self.path.stat()
                mode, group = status.st_mode & 0o7777, status.st_gid
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    if group not in (-1, os.fstat(fd).st_gid):
                        os.fchown(fd, -1, group)
                    os.fchmod(fd, mode)
                    os.fsync(fd)
                    signature = _signature(os.fstat(fd))
                self._keep_previous(expected, temporary)
                temporary.rename(self.path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                temporary.with_name(temporary.name + "-1").unlink(missing_ok=True)
                raise
            self._sync_directory(directory)
        except OSError as error:
            raise StoreError(f"{self.path}: not saved: {error.strerror}") from error
        self._cache = (signature, system)
        return signature

    def _keep_previous(self, expected: Signature | None, temporary: Path) -> None:
        """Refuse if the file is not the one we read; else keep it as ``qubes.xml.1``."""
        try:
            found: Signature | None = _signature(self.path.stat())
        except FileNotFoundError:
            found = None
        if found != expected:
            raise StoreError(f"{self.path} was changed by something that ignores its lock; nothing was saved")
        if expected is not None:
            link = temporary.with_name(temporary.name + "-1")
            link.hardlink_to(self.path)
            link.rename(self._previous)

    @staticmethod
    def _sync_directory(directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
