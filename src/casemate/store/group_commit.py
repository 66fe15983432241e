"""Group commit: changes of many threads that wait at the same time share one lock, one file and one fsync.

::

    thread 1  change() ── leads: takes all that wait, makes one transaction, saves ──> each gets its own result
    thread 2  change() ── waits ─┐
    thread 3  change() ── waits ─┴─ one of these leads the next round
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from casemate.model.system import System

T = TypeVar("T")


class Attempts(Protocol):
    """What is needed of a transaction."""

    def attempt(self, work: Callable[[System], T]) -> T:
        """Do something to the system, or, where it raises, nothing."""


class _Job(Generic[T]):
    """One change that waits for its turn."""

    def __init__(self, work: Callable[[System], T]) -> None:
        self.work = work
        self.turn = threading.Event()
        """Set when the change was made or refused, or when its thread is to make those that wait now."""
        self.done = False
        self.result: T
        self.error: BaseException | None = None

    def attempt(self, transaction: Attempts) -> None:
        try:
            self.result = transaction.attempt(self.work)
        except Exception as error:
            self.error = error


class GroupCommit:
    """The queue of changes of one store. ``write`` opens a transaction, which is saved when its block ends."""

    def __init__(self, write: Callable[[], AbstractContextManager[Attempts]]) -> None:
        self._write = write
        self._waiting: list[_Job[Any]] = []
        self._leading = False
        self._line = threading.Lock()
        """Guards these two: who waits for a save, and whether some thread is at it."""

    def change(self, work: Callable[[System], T]) -> T:
        """Do ``work`` to the system in any waiting thread; its result once that is on the disk."""
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
            with self._write() as transaction:
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
