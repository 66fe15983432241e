"""The page of the network: who reaches whom as a picture, traffic while it flows, and what decides about a place."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from casemate.web import rendering
from casemate.web.admin_api import AdminApi
from casemate.web.live import Live
from casemate.web.network_picture import Meter, picture
from casemate.wire.admin import Event
from casemate.wire.errors import CasemateError
from casemate.wire.names import qube_name

REPORT_SECONDS = 2.0
"""How long a report serves all windows. A shorter time would make rates of few packets jump."""
TOPIC = "network"
_EVENTS = (
    "domain-start", "domain-shutdown", "domain-paused", "domain-unpaused", "domain-add", "domain-delete",
    "property-set:netvm", "property-reset:netvm", "property-set:provides_network", "firewall-changed",
)  # fmt: skip
"""Beginnings of the names of events after which the picture is another one."""
PROTOCOLS = ("tcp", "udp", "icmp")


class NetworkPage:
    """Keeps the last report, for the rates."""

    def __init__(self, api: AdminApi, live: Live) -> None:
        self._api = api
        self._live = live
        self._lock = asyncio.Lock()
        self._report: dict[str, Any] = {}
        self._at = 0.0
        self._meter = Meter()
        live.listeners.append(self._hear)

    def routes(self) -> list[Route]:
        """The addresses of this page."""
        return [Route("/view/network", self._page), Route("/part/network", self._picture)]

    def _hear(self, event: Event) -> None:
        if event.name.startswith(_EVENTS):
            self._at = 0.0
            self._live.tell(TOPIC)

    async def _page(self, request: Request) -> Response:
        asked = {name: request.query_params.get(name, "") for name in ("qube", "host", "port", "protocol")}
        report = await self._newest()
        names = [one["name"] for one in report["qubes"]]
        explained, wrong = None, ""
        if asked["qube"]:
            name = str(qube_name(asked["qube"]))
            if asked["host"]:
                try:
                    explained = await self._explain(name, asked)
                except CasemateError as error:
                    wrong = str(error)
        html = rendering.render(
            "network.html", asked=asked, names=names, protocols=PROTOCOLS, explained=explained, wrong=wrong
        )
        return HTMLResponse(html)

    async def _explain(self, name: str, asked: dict[str, str]) -> dict[str, Any]:
        """What ``casemate net explain`` says, with the whole verdict under ``verdict``."""
        protocol = asked["protocol"] if asked["protocol"] in PROTOCOLS else "tcp"
        wish = " ".join(filter(None, (asked["host"].strip(), protocol, asked["port"].strip())))
        found: dict[str, Any] = json.loads(await self._api.call("admin.casemate.net.Explain", "", name, wish))
        passes = [step["passes"] for step in found["steps"]]
        found["verdict"] = "no" if False in passes else "it depends" if None in passes else "yes"
        return found

    async def _picture(self, request: Request) -> Response:
        report = await self._newest()
        shown = picture(report["qubes"], self._meter.rates)
        selected = request.query_params.get("qube", "")
        return HTMLResponse(
            rendering.render("network_picture.html", why=report["why"], picture=shown, selected=selected)
        )

    async def _newest(self) -> dict[str, Any]:
        async with self._lock:  # two windows at once ask once
            now = time.monotonic()
            if not self._at or now - self._at >= REPORT_SECONDS:
                self._report = json.loads(await self._api.call("admin.casemate.net.Show"))
                self._meter.take(self._report["qubes"], now)
                self._at = now
            return self._report
