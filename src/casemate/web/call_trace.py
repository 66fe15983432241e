"""Calls of qubes as they happen: follows the daemon's trace socket while a page shows them.

The socket gives a line of JSON for each step of each call (``casemate trace``). The steps of one call become one row:
a person wants to know what came of it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from casemate.web.admin_api import AdminApi
from casemate.web.live import Live

KEPT_CALLS = 100
"""Limit of the manager page (calls): shown at once; older ones are forgotten."""
MAX_LINE = 64 << 10
"""Bytes of a line. The daemon's are a few hundred."""
TOPIC = "calls"
NOT_YET = "Calls are not followed yet."
_RETRY_SECONDS = 2.0
_MEANINGS = {125: "cannot be run", 127: "no such service", 255: "went away"}
"""Of exit statuses that say something about the call; a service's own may be the same."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of a call by now. ``target``, ``service`` and ``argument`` are as a qube said them."""

    id: str
    source: str
    target: str
    service: str
    argument: str
    at: float = field(default_factory=time.time)
    phase: str = ""
    final: str = ""
    """Who serves it."""
    why: str = ""
    took: float = 0.0
    """Seconds from the request until the last step."""

    @property
    def refused(self) -> bool:
        """Whether it does not happen."""
        return self.phase == "refused"


class CallTrace:
    """The last calls, the newest first."""

    def __init__(self, api: AdminApi, live: Live) -> None:
        self._api = api
        self._live = live
        self._calls: OrderedDict[str, Call] = OrderedDict()
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self.why_not = NOT_YET
        """Why calls are not followed; empty while they are."""

    def newest(self) -> list[Call]:
        """Those that are kept."""
        return list(reversed(self._calls.values()))

    @contextmanager
    def used(self) -> Iterator[None]:
        """While this lasts calls are followed. Nobody watches before: watching costs the daemon work for each call."""
        self._users += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and self._task is not None:
                self._task.cancel()
                self._task = None
                self._say(NOT_YET)

    async def _follow(self) -> None:
        path = str(self._api.transport.settings.trace_socket)
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE)
                try:
                    while line := await reader.readline():
                        self._take(line)
                finally:
                    writer.transport.abort()
                self._say("The daemon has ended the report of calls.")
            except (OSError, ValueError) as error:  # ValueError: a line that is too long, or is no JSON
                self._say(f"Calls cannot be followed: {getattr(error, 'strerror', None) or error}")
            await asyncio.sleep(_RETRY_SECONDS)

    def _say(self, why_not: str) -> None:
        if why_not != self.why_not:
            self.why_not = why_not
            self._live.tell(TOPIC)

    def _take(self, line: bytes) -> None:
        step: dict[str, Any] = json.loads(line)
        self._say("")
        if step.get("phase") == "watching":
            return
        ident = str(step.get("id"))
        known = self._calls.get(ident)
        if known is not None and known.refused and step.get("phase") == "ended":
            return  # that it was refused is what a person wants to know
        if known is None or known.phase in ("refused", "ended"):  # another daemon counts from 1 again
            said = {key: str(step.get(key) or "") for key in ("source", "target", "service", "argument")}
            known = Call(ident, **said)  # type: ignore[arg-type]
            self._calls.pop(ident, None)
            self._calls[ident] = known
            while len(self._calls) > KEPT_CALLS:
                self._calls.popitem(last=False)
        self._calls[ident] = replace(
            known, phase=str(step.get("phase")), final=str(step.get("final") or known.final), why=_why(step, known),
            took=float(step.get("at") or 0.0),
        )  # fmt: skip
        self._live.tell(TOPIC)


def _why(step: dict[str, Any], known: Call) -> str:
    """What a person should know of a step besides its name."""
    if step.get("phase") == "refused":
        return f"{step.get('why')} ({step.get('cause')})"
    if step.get("phase") == "ended":
        status = step.get("status")
        return "" if status is None else f"status {status}" + (f", {_MEANINGS[status]}" if status in _MEANINGS else "")
    return str(step.get("why") or known.why)
