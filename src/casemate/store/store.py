"""The collection of qubes in one file: snapshot() without a lock, read() shared, write() exclusive.

A save is a temporary file, fsync, rename, fsync of the directory: a process killed at any instant leaves the old
file or the new one. The previous file stays as ``qubes.xml.1``.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Generic, TypeVar

from casemate.model import invariants
from casemate.model.changes import Change
from casemate.model.diff import changes_between
from casemate.model.system import System
from casemate.store import xml
from casemate.store.files import Files
from casemate.store.follow import Layout, follow, layout_of
from casemate.store.history import Copy, History
from casemate.store.lock import DEFAULT_TIMEOUT, FileLock
from casemate.wire.errors import StoreError

_log = logging.getLogger(__name__)

T = TypeVar("T")

Signature = tuple[int, int, int]
"""What tells two states of the file apart: inode, time of change in nanoseconds, size."""

_CHUNK = 1 << 20

Subscriber = Callable[[Sequence[Change]], None]


def _signature(status: os.stat_result) -> Signature:
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class Transaction:
    """One exclusive turn at the store. ``system`` is a copy of one's own; it is saved when the block ends well."""

    def __init__(self, store: Store, base: System, signature: Signature | None) -> None:
        self._store = store
        self._signature = signature
        self._checked = 0
        self.system = base.copy()
        self.saved: list[Change] = []
        """What has reached the disk."""

    @property
    def changes(self) -> Sequence[Change]:
        """What has changed since the last save."""
        return self.system.changes

    def attempt(self, work: Callable[[System], T]) -> T:
        """Do something to the system, all of it or, where it raises or breaks an invariant, nothing of it."""
        trial = self.system.copy()
        result = work(trial)
        invariants.check(trial, trial.changes)
        trial.changes[:0] = self.system.changes
        self.system = trial
        self._checked = len(trial.changes)
        return result

    def save(self) -> None:
        """Check and save now and keep the lock; nothing to do where nothing changed."""
        if not self.system.changes:
            return
        invariants.check(self.system, self.system.changes[self._checked :])
        self.system.generation += 1
        announced, self.system.changes = self.system.changes, []
        snapshot = self.system
        snapshot.frozen = True
        self._signature = self._store._replace(snapshot, self._signature)
        self.saved.extend(announced)
        self.system, self._checked = snapshot.copy(), 0
        self._store._make_durable()


class _Job(Generic[T]):
    """One change that waits for its turn."""

    def __init__(self, work: Callable[[System], T]) -> None:
        self.work = work
        self.turn = threading.Event()
        """Set when the change was made or refused, or when its thread is to make those that wait now."""
        self.done = False
        self.result: T
        self.error: BaseException | None = None

    def attempt(self, transaction: Transaction) -> None:
        try:
            self.result = transaction.attempt(self.work)
        except Exception as error:
            self.error = error


class Store:
    """The store in ``path``; one object per process and file, usable from any thread.

    ``snapshot()`` must not be changed. Subscribers are called after a commit, in the order of commits, in the
    thread of the writer; after somebody else's change, in the thread that finds it. They must not write to the store
    and should only hand the changes on.
    """

    def __init__(self, path: Path, *, timeout: float = DEFAULT_TIMEOUT, files: Files | None = None) -> None:
        self.path = path
        self.timeout = timeout
        self._files = files or Files()
        self.history = History(path, self._files)
        self._lock = FileLock(path)
        self._cache: tuple[Signature, System] | None = None
        self._layout: Layout | None = None
        """The file's parts, when the cached system was read or written; with them a new version costs what differs."""
        self._buffer = bytearray()
        self._turning = threading.RLock()
        """Held while the cache follows the file, so that each change is announced once."""
        self._subscribers: list[Subscriber] = []
        self._waiting: list[_Job[Any]] = []
        self._leading = False
        self._line = threading.Lock()
        """Guards these two: who waits for a save, and whether some thread is at it."""

    def subscribe(self, callback: Subscriber) -> None:
        """Have ``callback`` told the changes of each commit of this process, and of others once they are seen here."""
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

    def change(self, work: Callable[[System], T]) -> T:
        """Do ``work`` to the system and return its result once that is on the disk.

        Changes of many threads that wait at the same time share one lock, one file and one fsync; each stands or
        falls alone. ``work`` runs in any of these threads.
        """
        job = _Job(work)
        with self._line:
            self._waiting.append(job)
            follow, self._leading = self._leading, True
        if follow:
            job.turn.wait()
        if not job.done:
            self._lead()
        if job.error is not None:
            raise job.error
        return job.result

    def _lead(self) -> None:
        """Make all changes that wait; then it is the turn of one of those that have come meanwhile."""
        with self._line:
            jobs, self._waiting = self._waiting, []
        try:
            with self.write() as transaction:
                for job in jobs:
                    job.attempt(transaction)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for job in jobs:
                job.done = True
            with self._line:
                self._leading = bool(self._waiting)
                following = self._waiting[:1]
            for job in (*jobs, *following):
                job.turn.set()

    def restore(self, name: str, timeout: float | None = None) -> Path | None:
        """Put a copy of ``history`` in place of the file; where a damaged file is kept now (None: it was sound)."""
        with self._lock.exclusive(self.timeout if timeout is None else timeout):
            self._clean()
            copy = self.history.find(name)
            if copy.problem:
                raise StoreError(f"{name} cannot be restored: {copy.problem}")
            system = xml.read(copy.path.read_bytes(), str(copy.path))
            aside = None
            try:
                signature: Signature | None = _signature(self.path.stat())
            except FileNotFoundError:
                signature = None
            try:
                present = self._current()[1] if signature is not None else system
            except StoreError:
                present, aside = system, self.history.set_aside()
            system.generation = 1 + max(system.generation, present.generation)
            system.frozen = True
            before = self._cache
            self._replace(system, signature, keep=aside is None)
            self._make_durable()
            if before is not None:
                self._announce(changes_between(before[1], system))
            return aside

    def begin_with(self, system: System, timeout: float | None = None) -> None:
        """Make an imported system the store's content; refused where the store has qubes already."""
        self._prepare()
        with self._lock.exclusive(self.timeout if timeout is None else timeout):
            self._clean()
            signature, present = self._current()
            if len(present.domains) > 1:
                raise StoreError(f"{self.path} has qubes already; import into an empty store")
            invariants.check(system)
            system.generation = present.generation + 1
            system.frozen = True
            self._replace(system, signature)
            self._make_durable()
            self._announce(changes_between(present, system))

    def copies(self) -> list[Copy]:
        """What can be restored, newest first."""
        return self.history.copies()

    def close(self) -> None:
        """Close the lock's files; the next use opens them again."""
        self._lock.close()

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
            if self.history.previous.exists():
                raise StoreError(
                    f"{self.path} is missing although {self.history.previous.name} exists; put one in place"
                    " (casemate store history, casemate store restore)"
                )
            self._clean()
            system = System.initial()
            system.frozen = True
            self._replace(system, None)
            self._make_durable()

    def _current(self) -> tuple[Signature, System]:
        cache = self._cache
        try:
            if cache is not None and cache[0] == _signature(self.path.stat()):
                return cache
            return self._load()
        except FileNotFoundError as error:
            raise StoreError(f"{self.path}: the file is gone") from error

    def _load(self) -> tuple[Signature, System]:
        """Read the file; what it changed since it was read last is announced."""
        with self._turning:
            before = self._cache
            try:
                with self.path.open("rb", buffering=0) as file:
                    status = os.fstat(file.fileno())
                    signature = _signature(status)
                    if before is not None and before[0] == signature:
                        return before
                    data = self._content(file, status.st_size)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StoreError(f"{self.path}: {error.strerror}") from error
            old = self._layout
            new = follow(data, old) if before is not None and old is not None and old.system is before[1] else None
            if new is None:
                data = bytes(data)
                system = xml.read(data, str(self.path), None if before is None else before[1])
                new = layout_of(system, data)
            else:
                system = new.system
            system.frozen = True
            self._layout = new
            self._cache = found = (signature, system)
            if before is not None and self._subscribers:
                changes = changes_between(before[1], system)
                if changes:
                    self._announce(changes)
            return found

    def _content(self, file: FileIO, size: int) -> bytes | bytearray:
        """All of a file that was so long, or one byte more than may be; good until the next call.

        Into the same memory each time: to have the system find and clear it costs more than to read.
        """
        size, buffer = min(size, xml.MAX_SIZE), self._buffer
        if len(buffer) > size:
            del buffer[size:]
        else:
            buffer.extend(bytes(size - len(buffer)))
        read = file.readinto(buffer)
        rest = file.read(1)
        if read == size and not rest:
            return buffer
        rest = bytes(buffer[:read]) + rest
        while len(rest) <= xml.MAX_SIZE and (more := file.read(_CHUNK)):
            rest += more
        return rest

    def _clean(self) -> None:
        """Remove temporary files of killed writers; only the holder of the exclusive lock has any."""
        begin = f".{self.path.name}.tmp-"
        for name in os.listdir(self.path.parent):
            if name.startswith(begin):
                self._files.remove(self.path.with_name(name))

    def _replace(self, system: System, expected: Signature | None, keep: bool = True) -> Signature:
        """Write a system under the exclusive lock; ``expected`` is the file it was made from (None: there is none)."""
        data, layout = xml.compose(system)
        files = self._files
        temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        previous = temporary.with_name(temporary.name + "-1")
        try:
            mode, group = 0o600, -1
            if expected is not None:
                status = self.path.stat()
                mode, group = status.st_mode & 0o7777, status.st_gid
            try:
                signature = self._write_file(temporary, data, mode, group)
                self._require(expected)
                if expected is not None and keep:
                    self.history.keep()
                    files.link(self.path, previous)
                    files.rename(previous, self.history.previous)
                    # After a crash just here both may be names of one file, and then rename(2) does nothing.
                    files.remove(previous)
                with self._turning:
                    files.rename(temporary, self.path)
                    self._layout = layout
                    self._cache = (signature, system)
            except BaseException:
                files.remove(temporary)
                files.remove(previous)
                raise
        except OSError as error:
            raise StoreError(f"{self.path}: not saved: {error.strerror}") from error
        return signature

    def _write_file(self, path: Path, data: bytes, mode: int, group: int) -> Signature:
        files = self._files
        fd = files.create(path)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[files.write(fd, rest) :]
            files.set_owner(fd, mode, group)
            files.sync(fd)
            return _signature(os.fstat(fd))
        finally:
            files.close(fd)

    def _require(self, expected: Signature | None) -> None:
        """Refuse if the file is not the one that was read."""
        try:
            found: Signature | None = _signature(self.path.stat())
        except FileNotFoundError:
            found = None
        if found != expected:
            raise StoreError(f"{self.path} was changed by something that ignores its lock; nothing was saved")

    def _make_durable(self) -> None:
        """After the rename: a failure here does not undo it, so it is said in other words."""
        try:
            self._files.sync_directory(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"{self.path}: saved, but a power failure might still undo it: {error.strerror}"
            ) from error
