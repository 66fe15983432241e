"""The order in which locks are taken, asserted while CASEMATE_DEBUG=1 is set.

Rank 1: the operation lock of a qube (several: in order of names). Rank 2: the store. Never back. A task or thread
that takes a lock of a lower or the same place than one it holds would sooner or later wait for somebody who waits
for it; with the variable set that is a LockOrderError at once, every time, not a hang on a bad day.
"""

from __future__ import annotations

import os
from contextvars import ContextVar, Token

OPERATION, STORE = 1, 2

Place = tuple[int, str]
"""Rank of a lock, and its name among those of its rank."""

ENABLED = os.environ.get("CASEMATE_DEBUG", "") not in ("", "0")

_held: ContextVar[tuple[Place, ...]] = ContextVar("held locks", default=())
"""What this task or thread holds; work given to a thread (asyncio.to_thread) takes it along."""


class LockOrderError(AssertionError):
    """A lock was asked for while one of a later place is held: a fault of the program."""


def entering(rank: int, name: str) -> Token[tuple[Place, ...]] | None:
    """Note that a lock is about to be taken; LockOrderError when it must not be now."""
    if not ENABLED:
        return None
    held = _held.get()
    if held and (rank, name) <= held[-1]:
        raise LockOrderError(f"{name} (rank {rank}) is taken while {held} is held; lock order: {__doc__}")
    return _held.set((*held, (rank, name)))


def left(token: Token[tuple[Place, ...]] | None) -> None:
    """The lock of that token was given back."""
    if token is not None:
        _held.reset(token)
