"""The page of the host: what ``casemate status`` says, the storage pools, the log of events."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from casemate.web import rendering
from casemate.web.admin_api import AdminApi
from casemate.web.event_log import KEPT_EVENTS, EventLog
from casemate.web.live import Live
from casemate.wire.errors import CasemateError, ValueInvalidError
from casemate.wire.names import number

LOW_SHARE = 0.1
"""Below this share of free room a pool is warned of."""
LOW_BYTES = 2 << 30
"""And below this many free bytes: one start of a qube may write as much."""
HIDDEN = frozenset({"protections", "version"})
"""Keys of the status that are shown in another form than the rest."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool. Sizes are in bytes, None where the pool has no file system of its own to measure."""

    name: str
    driver: str
    place: str
    size: int | None
    usage: int | None

    @property
    def free(self) -> int | None:
        """Room that is left."""
        return None if self.size is None or self.usage is None else max(0, self.size - self.usage)

    @property
    def warning(self) -> str:
        """What is wrong; empty for nothing."""
        if self.free is None or self.size is None:
            return ""
        if self.free < LOW_BYTES or self.free < LOW_SHARE * self.size:
            return "Little room is left. A full pool stops running qubes: remove qubes, revisions or warm images."
        return ""


class HostPage:
    """Asks the daemon at each showing; keeps nothing but the log."""

    def __init__(self, api: AdminApi, live: Live, read_only: bool) -> None:
        self._api = api
        self._log = EventLog(live)
        self._read_only = read_only

    def routes(self) -> list[Route]:
        """The addresses of this page."""
        return [
            Route("/view/host", self._page),
            Route("/part/host", self._status),
            Route("/part/events", self._events),
            Route("/host/probe", self._probe, methods=["POST"]),
        ]

    async def _page(self, _request: Request) -> Response:
        return HTMLResponse(rendering.render("host.html", most=KEPT_EVENTS))

    async def _status(self, _request: Request) -> Response:
        """The part above the log, which is shown anew now and then."""
        status: dict[str, Any] = json.loads(await self._api.call("admin.casemate.Status"))
        protections = status.get("protections", [])
        html = rendering.render(
            "host_status.html",
            version=status.get("version", "unknown"),
            lines=[(key, str(value)) for key, value in status.items() if key not in HIDDEN],
            missing=[one for one in protections if not one["present"]],
            present=[one for one in protections if one["present"]],
            pools=await pools(self._api),
            read_only=self._read_only,
        )
        return HTMLResponse(html)

    async def _probe(self, _request: Request) -> Response:
        """Find out what runs guests here; boots a kernel at the first time after the host's boot."""
        return PlainTextResponse(f"Qubes run by {await self._api.call('admin.casemate.Probe')}")

    async def _events(self, request: Request) -> Response:
        """Rows of the log that are newer than the number ``after``."""
        entries = self._log.after(number_of(request, "after"))
        return HTMLResponse(rendering.render("events.html", entries=entries, clock=clock))


def number_of(request: Request, name: str) -> int:
    """A number in the query of an address; 0 where it is missing. ValueInvalidError for anything else."""
    text = request.query_params.get(name, "0")
    if len(text) > 15:
        raise ValueInvalidError(f"{name} is no number")
    return number(text, name, 0, 10**15)


def clock(seconds: float) -> str:
    """The time of day, as this host has it."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


async def pools(api: AdminApi) -> list[Pool]:
    """All pools, each with its room."""
    names = (await api.call("admin.pool.List")).split()
    return list(await asyncio.gather(*(_pool(api, name) for name in names)))


async def _pool(api: AdminApi, name: str) -> Pool:
    try:
        text = await api.call("admin.pool.Info", name)
    except CasemateError as error:  # such as a directory that is not mounted: the others are shown all the same
        return Pool(name, "", f"unreadable: {error}", None, None)
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    sizes = [int(found[key]) if found.get(key, "").isdecimal() else None for key in ("size", "usage")]
    return Pool(name, found.get("driver", ""), found.get("dir_path", ""), *sizes)
