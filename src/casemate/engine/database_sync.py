"""Keeps the databases of running qubes as the store says: what a start writes, a change writes too.

::

    store ── a commit ──▶ wake ──▶ for each running qube: database_content(domain), compared with what was written
    bus ──── a start ───▶                                 last ──▶ writes and removals through the qube's link

The content is computed anew and compared, so that no list of "which property is which key" stands beside the one in
content.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from casemate.engine.commits import after_each
from casemate.engine.content import database_content, follows_changes
from casemate.engine.states import States
from casemate.model.domain import Domain
from casemate.network.keys import Rules, commits
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import DisconnectedError

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 2.0
"""Before a database that could not be reached is tried again: its qube may be starting, or its link be hanging."""


class Databases(Protocol):
    """Reaches the databases of running qubes."""

    async def database(self, name: str, prefix: str) -> dict[str, bytes]:
        """Keys that begin with ``prefix``, and their values; DisconnectedError where there is no database."""

    async def change_database(self, name: str, write: Mapping[str, str], remove: list[str]) -> None:
        """Write and remove keys; DisconnectedError where there is no database."""


class DatabaseSync:
    """One task that brings databases up to date after each commit. Owns what it wrote last, by qube."""

    def __init__(
        self, store: Store, states: States, databases: Databases, timezone: Callable[[], str | None], rules: Rules
    ) -> None:
        self._store = store
        self._states = states
        self._databases = databases
        self._timezone = timezone
        self._rules = rules
        self._written: dict[str, dict[str, str]] = {}
        self._unfinished: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the store from now on."""
        after_each(self._store, self._wake.set)
        self._task = asyncio.create_task(self._run())

    def heard(self, event: ApiEvent) -> None:
        """A listener for the bus: a qube that has just started may have missed a change during its start, and rules
        of a firewall are not in the store."""
        if isinstance(event, ev.DomainStart | ev.FirewallChanged):
            self._wake.set()

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        failed = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS if failed else None):
                    await self._wake.wait()
            self._wake.clear()
            failed = False
            system = self._store.snapshot()
            running = [name for name in self._states.all() if name in system.domains]
            for name in self._written.keys() - set(running):
                del self._written[name]  # its next start has a new database
            self._unfinished.intersection_update(running)
            # One after the other: a qube whose link hangs costs the others its time limit, once.
            for name in running:
                try:
                    await self._bring_up_to_date(system.domains[name])
                except DisconnectedError as error:
                    log.debug("%s: its database is not brought up to date: %s", name, error)
                    failed = True

    async def _bring_up_to_date(self, domain: Domain) -> None:
        name = domain.name
        content = database_content(domain, b"", self._timezone(), self._rules)
        wanted = {key: value for key, value in content.items() if follows_changes(key)}
        before = self._written.get(name, {})
        again = name in self._unfinished
        if name in self._written and wanted == before and not again:
            return
        there = await self._databases.database(name, "/")
        write = {key: value for key, value in wanted.items() if there.get(key) != value.encode()}
        # Only what we wrote is taken back: a person may have put keys of another kind there.
        remove = [key for key in before if key in there and key not in wanted]
        self._unfinished.add(name)
        if write or remove:
            await self._databases.change_database(name, write, remove)
        # Last: a net qube applies the rules of a qube when it is told that they are whole. An attempt that broke off
        # may have written rules without telling of it, so the next one tells of all.
        if whole := commits([*write, *remove, *(wanted if again else ())]):
            await self._databases.change_database(name, dict.fromkeys(whole, ""), [])
        self._written[name] = wanted
        self._unfinished.discard(name)
