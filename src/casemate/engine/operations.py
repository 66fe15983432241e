"""The operation lock of each qube: one start, stop, creation or removal at a time. It comes before the store's lock."""

from __future__ import annotations

import asyncio
from contextvars import Token
from types import TracebackType

from casemate.store import order


class _Entry:
    """The lock of one name while anybody has it or waits for it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class OperationLocks:
    """``async with locks[name]:``. A lock exists while anybody has it or waits for it, so removed names cost nothing.

    Whoever needs two takes them in order of names. Nobody asks for one while holding the store's lock, or another of a
    higher ``rank`` (store/order.py).
    """

    def __init__(self, rank: int = order.OPERATION) -> None:
        self._rank = rank
        self._entries: dict[str, _Entry] = {}

    def __getitem__(self, name: str) -> Operation:
        return Operation(self._entries, self._rank, name)

    def __len__(self) -> int:
        return len(self._entries)


class Operation:
    """One turn at a qube's operation lock."""

    def __init__(self, entries: dict[str, _Entry], rank: int, name: str) -> None:
        self._entries = entries
        self._rank = rank
        self._name = name
        self._token: Token[tuple[object, tuple[order.Position, ...]]] | None = None

    async def __aenter__(self) -> None:
        self._token = order.entering(self._rank, self._name)
        entry = self._entries.setdefault(self._name, _Entry())
        entry.users += 1
        try:
            await entry.lock.acquire()
        except BaseException:
            self._leave(entry)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry = self._entries[self._name]
        entry.lock.release()
        self._leave(entry)

    def _leave(self, entry: _Entry) -> None:
        entry.users -= 1
        if not entry.users:
            del self._entries[self._name]
        order.left(self._token)
