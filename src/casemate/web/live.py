"""The rows of the table of qubes, kept equal to the daemon's by its events.

Each change gives its row a new version, taken from one counter. Who shows rows remembers the counter and asks for what
is newer: a reader that is slow skips states, and nothing waits in a queue for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from casemate.web.admin_api import AdminApi
from casemate.web.loads import Load
from casemate.wire.admin import CONNECTED, Event
from casemate.wire.errors import CasemateError
from casemate.wire.names import color

STARTING = "The list of qubes is being read."
"""Why the rows may be stale before the daemon has been asked."""
TICK_SECONDS = 0.1
"""Time between two readings of what changed: events that come meanwhile cost one reading together."""
IDLE_SECONDS = 30.0
"""How long the daemon is followed after the last page was closed. A page that is loaded anew comes sooner."""
_RETRY_SECONDS = (0.1, 0.3, 1.0, 2.0)
KEPT_NOTICES = 50
"""Messages for persons that are kept for browsers that read slowly."""
KEPT_GONE = 2000
"""Names of removed qubes that are remembered; who is further behind gets everything anew."""
KEPT_TOPICS = 4096
"""Topics whose last change is remembered; who is further behind shows everything anew."""
SHOWN = ("label", "template", "netvm", "memory", "provides_network")
"""Properties that a row shows."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the table shows of one qube."""

    name: str
    klass: str
    state: str
    label: str
    color: str
    """``#rrggbb``"""
    template: str
    netvm: str
    memory: str
    """MiB that it starts with; empty where its class has no such property."""
    provides_network: bool
    busy: str = ""
    """What was asked for and is not done, such as ``start``."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is newer than a version."""

    version: int
    whole: bool
    """Whether ``rows`` are all that there are: what is shown besides is gone."""
    rows: list[Row]
    gone: list[str]
    loads: dict[str, Load]
    notices: list[str]
    lost: str
    """Why the rows may be stale; empty while they are not."""
    lost_changed: bool
    total: int
    topics: list[str]
    """What else has changed, by the words of ``Live.tell``; ``qube:NAME`` is anything about a qube, ``event:NAME`` any
    event whose name begins so, up to its colon."""

    def concerns(self, topics: frozenset[str]) -> bool:
        """Whether there is anything in it for who wants to know of these topics."""
        news = self.rows or self.gone or self.loads or self.notices or self.lost_changed
        return self.whole or bool(news) or not topics.isdisjoint(self.topics)


class Live:
    """All rows. The daemon is followed while somebody uses this, and IDLE_SECONDS longer."""

    def __init__(self, api: AdminApi) -> None:
        self._api = api
        self.rows: dict[str, Row] = {}
        self.loads: dict[str, Load] = {}
        self.lost = STARTING
        self._version = 0
        self._of_row: dict[str, int] = {}
        self._of_load: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._oldest = 0
        """Versions before this one miss removals or topics: who has one gets everything."""
        self._of_lost = 0
        self._notices: deque[tuple[int, str]] = deque(maxlen=KEPT_NOTICES)
        self._topics: dict[str, int] = {}
        """In the order of their versions."""
        self.listeners: list[Callable[[Event], None]] = []
        """Called with each event of the daemon, while it is followed. The rows may still be those before it."""
        self.settled: list[Callable[[], None]] = []
        """Called when rows have been read anew."""
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._dirty: set[str] = set()
        self._all = False
        self._colors: dict[str, str] = {}
        self._users = 0
        self._used = 0.0
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------- for who shows rows

    @contextmanager
    def used(self) -> Iterator[None]:
        """While this lasts the rows are kept up to date."""
        self._users += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._users -= 1
            self._used = time.monotonic()

    def since(self, version: int) -> Changes:
        """What is newer than ``version``; everything for a version that is too old or from nowhere."""
        whole = not self._oldest <= version <= self._version or version == 0
        if whole:
            version = 0
        return Changes(
            self._version,
            whole,
            [row for name, row in self.rows.items() if self._of_row[name] > version],
            [name for name, at in self._gone.items() if at > version] if not whole else [],
            {name: load for name, load in self.loads.items() if self._of_load[name] > version},
            [text for at, text in self._notices if at > version] if not whole else [],
            self.lost,
            self._of_lost > version,
            len(self.rows),
            [topic for topic, at in self._topics.items() if at > version],
        )

    async def newer(self, version: int, seconds: float) -> None:
        """Wait until something is newer than ``version``, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                while self._version <= version:
                    await self._changed.wait()
        except TimeoutError:
            pass

    def notice(self, text: str) -> None:
        """Tell all who look."""
        self._notices.append((self._next(), text))

    def tell(self, topic: str) -> None:
        """Something changed that no row shows. Pages with that topic ask for it anew."""
        self._topics.pop(topic, None)
        self._topics[topic] = self._next()
        while len(self._topics) > KEPT_TOPICS:
            first = next(iter(self._topics))
            self._oldest = max(self._oldest, self._topics.pop(first))

    def busy(self, name: str, verb: str) -> None:
        """Show that something was asked for; an empty ``verb`` when it is done."""
        if name in self.rows:
            self._put(replace(self.rows[name], busy=verb))
            self.tell(f"qube:{name}")

    async def close(self) -> None:
        """Follow the daemon no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -------------------------------------------------------------------------------------------------- the daemon's

    def _next(self) -> int:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return self._version

    def _put(self, row: Row) -> None:
        if self.rows.get(row.name) != row:
            self.rows[row.name] = row
            self._of_row[row.name] = self._next()
            self._gone.pop(row.name, None)
        if row.state in ("Halted", "NA") and row.name in self.loads:
            del self.loads[row.name], self._of_load[row.name]

    def _drop(self, name: str) -> None:
        if self.rows.pop(name, None) is None:
            return
        del self._of_row[name]
        self.loads.pop(name, None)
        self._of_load.pop(name, None)
        self._gone[name] = self._next()
        while len(self._gone) > KEPT_GONE:
            first = next(iter(self._gone))
            self._oldest = max(self._oldest, self._gone.pop(first) + 1)

    def _lose(self, why: str) -> None:
        if why != self.lost:
            self.lost = why
            self._of_lost = self._next()

    async def _run(self) -> None:
        """Follow the daemon until nobody has looked for a while. A daemon that goes is looked for again and again."""
        attempt = 0
        while True:
            self._wake.clear()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow())
                    group.create_task(self._statistics())
                    group.create_task(self._refresh())
                    group.create_task(self._until_idle())
            except* _Idle:
                pass
            except* CasemateError as errors:
                if not self.lost:
                    attempt = 0  # it was there: it has gone just now
                self._lose(str(_first(errors)))
            if self._is_idle():
                self._lose(STARTING)
                return
            await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1

    def _is_idle(self) -> bool:
        return not self._users and time.monotonic() - self._used > IDLE_SECONDS

    async def _until_idle(self) -> None:
        while not self._is_idle():
            await asyncio.sleep(IDLE_SECONDS / 3)
        raise _Idle

    async def _follow(self) -> None:
        async for events in self._api.events():
            for event in events:
                self._take(event)
                for listener in self.listeners:
                    listener(event)
            self._wake.set()

    def _take(self, event: Event) -> None:
        if event.name == CONNECTED or (not event.subject and event.name.startswith("property-")):
            self._all = True  # everything may have changed; a system's property is the default of many
        for name in (event.subject, event.details.get("vm", "")):
            if name:
                self._dirty.add(name)
                self.tell(f"qube:{name}")
        self.tell(f"event:{event.name.partition(':')[0]}")

    async def _refresh(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            everything, names = self._all, self._dirty
            self._all, self._dirty = False, set()
            wish: dict[str, Any] = {"properties": list(SHOWN)}
            if not everything:
                # One that is gone would fail the whole question, so the list of names is asked for with it.
                there = {line.split(" ", 1)[0] for line in (await self._api.call("admin.vm.List")).splitlines()}
                for name in names - there:
                    self._drop(name)
                wish["qubes"] = sorted(names & there)
            if everything or wish["qubes"]:
                await self._read(wish, everything)
            for settled in self.settled:
                settled()
            await asyncio.sleep(TICK_SECONDS)

    async def _read(self, wish: dict[str, Any], everything: bool) -> None:
        try:
            found = json.loads(await self._api.call("admin.casemate.List", payload=json.dumps(wish)))
        except CasemateError:
            if everything:
                raise
            self._all = True  # one was removed between the two questions
            self._wake.set()
            return
        rows = [await self.row_of(entry) for entry in found]
        if everything:
            for name in self.rows.keys() - {entry["name"] for entry in found}:
                self._drop(name)
            self._lose("")
        for row in rows:
            old = self.rows.get(row.name)
            self._put(replace(row, busy=old.busy if old else ""))

    async def row_of(self, entry: dict[str, Any]) -> Row:
        """The row of a qube as ``admin.casemate.List`` describes it, asked for the properties in SHOWN."""
        label = entry["properties"].get("label", {}).get("value", "")
        if label and label not in self._colors:
            self._colors[label] = "#" + color(await self._api.call("admin.label.Get", label))[2:]
        shown = {name: str(prop["value"]) for name, prop in entry["properties"].items()}
        return Row(
            entry["name"], entry["class"], entry["state"], shown.get("label", ""),
            self._colors.get(shown.get("label", ""), "#000000"), shown.get("template", ""), shown.get("netvm", ""),
            shown.get("memory", ""), shown.get("provides_network") == "True",
        )  # fmt: skip

    async def _statistics(self) -> None:
        async for events in self._api.events("admin.vm.Stats"):
            for event in events:
                row = self.rows.get(event.subject)
                if row is None or row.state in ("Halted", "NA"):
                    continue
                if event.name == "vm-network-stats":
                    if event.subject in self.loads:
                        self.loads[event.subject].traffic(event.details)
                elif event.name == "vm-stats":
                    self.loads.setdefault(event.subject, Load()).machine(event.details)
                    self._of_load[event.subject] = self._next()


class _Idle(Exception):
    """Nobody looks any more."""


def _first(errors: BaseExceptionGroup[CasemateError]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
