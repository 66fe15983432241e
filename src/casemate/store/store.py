"""The store: snapshot() without a lock, read() under a shared one, write() under an exclusive one.

It has the cache of the file as a `System`, opens transactions, and tells subscribers what each commit changed. The
package page has the picture; how a save survives a crash is in ``data_file.py``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from casemate.model import invariants
from casemate.model.changes import Change
from casemate.model.diff import changes_between
from casemate.model.system import System
from casemate.store import reader
from casemate.store.data_file import DataFile, Signature, signature_of
from casemate.store.files import Files
from casemate.store.group_commit import GroupCommit
from casemate.store.history import Copy
from casemate.store.lock import DEFAULT_TIMEOUT, FileLock
from casemate.store.parts import Parts, follow, split
from casemate.store.writer import compose
from casemate.wire.errors import StoreError

_log = logging.getLogger(__name__)

T = TypeVar("T")

Subscriber = Callable[[Sequence[Change]], None]
"""Called with the changes of one commit."""


class Transaction:
    """One exclusive turn at the store, made by ``Store.write`` for its block.

    ``system`` is a copy that only this transaction has. It is saved when the block ends without an exception.
    """

    def __init__(self, store: Store, base: System, signature: Signature | None) -> None:
        self._store = store
        self._signature = signature
        self._checked = 0
        """How many of the changes have had their invariants checked, by ``attempt``."""
        self.system = base.copy()
        self.saved: list[Change] = []
        """What has reached the disk."""

    @property
    def changes(self) -> Sequence[Change]:
        """What has changed since the last save."""
        return self.system.changes

    def attempt(self, work: Callable[[System], T]) -> T:
        """Do ``work`` to the system. Where it raises or breaks an invariant, nothing of it is kept."""
        trial = self.system.copy()
        result = work(trial)
        invariants.check(trial, trial.changes)
        trial.changes[:0] = self.system.changes
        self.system = trial
        self._checked = len(trial.changes)
        return result

    def save(self) -> None:
        """Check the changes so far, save them and keep the lock. Without changes nothing is written."""
        if not self.system.changes:
            return
        invariants.check(self.system, self.system.changes[self._checked :])
        self.system.generation += 1
        announced, self.system.changes = self.system.changes, []
        # What is saved becomes the shared snapshot of this process. The transaction goes on with a copy of it.
        snapshot = self.system
        snapshot.frozen = True
        self._signature = self._store._replace(snapshot, self._signature)
        self.saved.extend(announced)
        self.system, self._checked = snapshot.copy(), 0
        self._store._file.make_durable()


class Store:
    """The store in ``path``; one object per process and file, usable from any thread.

    Subscribers are called after each commit, in the order of commits: in the thread of the writer, and after a change
    by another process in the thread that finds it. They must not write to the store, and should only pass the changes
    on.
    """

    def __init__(self, path: Path, *, timeout: float = DEFAULT_TIMEOUT, files: Files | None = None) -> None:
        self.path = path
        self.timeout = timeout
        self._file = DataFile(path, files or Files())
        self.history = self._file.history
        self._lock = FileLock(path)
        self._cache: tuple[Signature, System] | None = None
        self._parts: Parts | None = None
        """The file's parts when the cached system was read or written; with them a new version costs what differs."""
        self._turning = threading.RLock()
        """Held while the cache follows the file, so that each change is announced once."""
        self._subscribers: list[Subscriber] = []
        self._commits = GroupCommit(self.write)

    def subscribe(self, callback: Subscriber) -> None:
        """Call ``callback`` after each commit of this process, and after those of others when they are noticed here."""
        self._subscribers.append(callback)

    def snapshot(self) -> System:
        """The system as it is on disk now, without any lock; cached while the file is the same. It is frozen."""
        cache = self._cache
        try:
            if cache is not None and cache[0] == self._file.signature():
                return cache[1]
            return self._load()[1]
        except FileNotFoundError:
            pass
        if self._lock.held:  # creating it takes the lock, which this thread cannot take twice
            raise StoreError(f"{self.path}: the file is gone")
        self._create()
        return self._load()[1]

    @contextmanager
    def read(self, timeout: float | None = None) -> Iterator[System]:
        """The system; nobody can change the file while the block runs. Raises LockTimeoutError.

        ``timeout`` in seconds replaces that of the store.
        """
        self._prepare()
        with self._lock.shared(self.timeout if timeout is None else timeout):
            yield self.snapshot()

    @contextmanager
    def write(self, timeout: float | None = None) -> Iterator[Transaction]:
        """Change the system: all of the block is saved and announced, or none of it happened.

        Do nothing slow in the block: everybody who writes waits. What ``Transaction.save`` saved inside it stays saved.
        ``timeout`` in seconds replaces that of the store; raises LockTimeoutError.
        """
        self._prepare()
        with self._lock.exclusive(self.timeout if timeout is None else timeout):
            self._file.clean()
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

        Changes of many threads that wait at the same time are saved together (``group_commit.py``); each stands or
        falls alone. ``work`` runs in any of these threads.
        """
        return self._commits.change(work)

    def restore(self, name: str, timeout: float | None = None) -> Path | None:
        """Put the copy that ``copies`` lists under ``name`` in place of the file.

        Returns where the file is kept that was in its place, if that was damaged; None where it was sound, as then it
        is the previous save.
        """
        with self._lock.exclusive(self.timeout if timeout is None else timeout):
            self._file.clean()
            copy = self.history.find(name)
            if copy.problem:
                raise StoreError(f"{name} cannot be restored: {copy.problem}")
            system = reader.read(copy.path.read_bytes(), str(copy.path))
            aside = None
            signature = self._file.find_signature()
            try:
                present = self._current()[1] if signature is not None else system
            except StoreError:
                present, aside = system, self.history.set_aside()
            # Higher than both, so that nobody takes the restored file for an older state of what they know.
            system.generation = 1 + max(system.generation, present.generation)
            system.frozen = True
            before = self._cache
            self._replace(system, signature, keep=aside is None)
            self._file.make_durable()
            if before is not None:
                self._announce(changes_between(before[1], system))
            return aside

    def begin_with(self, system: System, timeout: float | None = None) -> None:
        """Make an imported system the store's content; refused where the store has qubes already."""
        self._prepare()
        with self._lock.exclusive(self.timeout if timeout is None else timeout):
            self._file.clean()
            signature, present = self._current()
            if len(present.domains) > 1:
                raise StoreError(f"{self.path} has qubes already; import into an empty store")
            invariants.check(system)
            system.generation = present.generation + 1
            system.frozen = True
            self._replace(system, signature)
            self._file.make_durable()
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
            self._file.clean()
            system = System.initial()
            system.frozen = True
            self._replace(system, None)
            self._file.make_durable()

    def _current(self) -> tuple[Signature, System]:
        cache = self._cache
        try:
            if cache is not None and cache[0] == self._file.signature():
                return cache
            return self._load()
        except FileNotFoundError as error:
            raise StoreError(f"{self.path}: the file is gone") from error

    def _load(self) -> tuple[Signature, System]:
        """Read the file, and announce what differs from what this process knew."""
        with self._turning:
            before = self._cache
            try:
                with self.path.open("rb", buffering=0) as file:
                    status = os.fstat(file.fileno())
                    signature = signature_of(status)
                    if before is not None and before[0] == signature:
                        return before
                    data = self._file.content(file, status.st_size)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StoreError(f"{self.path}: {error.strerror}") from error
            old = self._parts
            new = follow(data, old) if before is not None and old is not None and old.system is before[1] else None
            if new is None:
                data = bytes(data)
                system = reader.read(data, str(self.path))
                new = split(system, data)
            else:
                system = new.system
            system.frozen = True
            self._parts = new
            self._cache = found = (signature, system)
            if before is not None and self._subscribers:
                changes = changes_between(before[1], system)
                if changes:
                    self._announce(changes)
            return found

    def _replace(self, system: System, expected: Signature | None, keep: bool = True) -> Signature:
        """Write a system under the exclusive lock; ``expected`` is the file it was made from (None: there is none)."""
        data, parts = compose(system)

        def put(temporary: Path, signature: Signature) -> None:
            # One step for readers of this process: they never take the new file for somebody else's.
            with self._turning:
                self._file.rename_from(temporary)
                self._parts = parts
                self._cache = (signature, system)

        return self._file.replace(data, expected, put, keep)
