"""The order in which locks are taken, asserted while CASEMATE_DEBUG=1 is set.

Rank 0 are the locks of snapshots, rank 1 the operation locks of qubes, among them in order of names. Rank 2 is the
store. A task or thread may take a
lock only behind all that it holds. Two that take two locks in opposite order block each other for ever, but only if
they meet at the wrong moment. With the variable set the wrong order alone raises LockOrderError, every time.
"""

from __future__ import annotations

import asyncio
import os
from contextvars import ContextVar, Token

SNAPSHOT, OPERATION, STORE = 0, 1, 2

Position = tuple[int, str]
"""Rank of a lock, and its name among those of its rank."""

ENABLED = os.environ.get("CASEMATE_DEBUG", "") not in ("", "0")

_Held = tuple[object, tuple[Position, ...]]

_held: ContextVar[_Held] = ContextVar("held locks", default=(None, ()))
"""The task that holds locks, and which. A thread that works for a task (asyncio.to_thread) inherits the variable and
does hold the task's locks. A task or callback that was created meanwhile inherits it too, but holds nothing: so the
owner is kept with the locks and compared."""


class LockOrderError(AssertionError):
    """A lock was asked for while one of a later position is held: a fault of the program."""


def _now() -> tuple[object, tuple[Position, ...]]:
    owner, held = _held.get()
    try:
        task: object = asyncio.current_task()
    except RuntimeError:  # a thread without a loop
        return owner, held
    return task, held if task is not None and task is owner else ()


def entering(rank: int, name: str) -> Token[_Held] | None:
    """Note that a lock is about to be taken; LockOrderError when it must not be now."""
    if not ENABLED:
        return None
    owner, held = _now()
    if held and (rank, name) <= held[-1]:
        raise LockOrderError(f"{name} (rank {rank}) is taken while {held} is held; lock order: {__doc__}")
    return _held.set((owner, (*held, (rank, name))))


def left(token: Token[_Held] | None) -> None:
    """The lock of that token was given back."""
    if token is not None:
        _held.reset(token)
