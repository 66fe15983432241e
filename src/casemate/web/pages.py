"""The addresses of the manager page. The guard has let a request through before anything here sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from casemate.web import call_trace, rendering
from casemate.web.actions import Actions
from casemate.web.admin_api import AdminApi
from casemate.web.backups_page import BackupsPage
from casemate.web.devices_page import DevicesPage
from casemate.web.disposables_page import DisposablesPage
from casemate.web.first_run import FirstRun
from casemate.web.guard import Refused
from casemate.web.host_page import HostPage
from casemate.web.live import Live
from casemate.web.network_page import NetworkPage
from casemate.web.policy_page import PolicyPage
from casemate.web.qube.pages import QubePages
from casemate.web.qubes_page import QubesPage
from casemate.web.site import Endpoint, Site
from casemate.web.stream import Streams
from casemate.web.templates_page import TemplatesPage
from casemate.wire.errors import CasemateError, DaemonAccessError, NotFoundError

_MODULES = (
    "casemate", "console", "forms", "messages", "pages", "parts", "refresh", "requests", "selection", "stream", "table",
    "xterm", "xterm-fit",
)  # fmt: skip
ASSETS = {
    **{f"{name}.js": "text/javascript" for name in _MODULES},
    "xterm.css": "text/css",
    "casemate.css": "text/css",
    "qube.css": "text/css",
    "icon.svg": "image/svg+xml",
}
"""Files that anybody may have, with their types."""
PUBLIC = ("/", *(f"/static/{name}" for name in ASSETS))
"""Addresses that need no token: what they answer is the same for everybody."""


class Page(Protocol):
    """A part of the page, in a module of its own."""

    def routes(self) -> Iterable[Route]:
        """Its addresses."""


class Pages:
    """All that is answered, for one daemon."""

    def __init__(self, api: AdminApi, live: Live, actions: Actions, read_only: bool) -> None:
        site = Site(api, live, actions, read_only)
        policy = PolicyPage(api, live, read_only)
        self._pages: tuple[Page, ...] = (
            QubesPage(site), QubePages(site), TemplatesPage(site), DisposablesPage(site), DevicesPage(site),
            NetworkPage(api, live), policy, BackupsPage(site), HostPage(api, live, read_only), FirstRun(site),
        )  # fmt: skip
        self._streams = Streams(live, read_only, {call_trace.TOPIC: policy.trace.used})
        self._assets = {name: (rendering.HERE / "static" / name).read_bytes() for name in ASSETS}
        # A new version of the files has a new address: a window that stays open never mixes two.
        self._version = hashlib.sha256(b"".join(self._assets.values())).hexdigest()[:12]

    def app(self) -> Starlette:
        """The application, without the guard."""
        routes = [
            Route("/", self._checked(self._frame)),
            Route("/static/{name}", self._checked(self._asset)),
            Route("/events", self._checked(self._events)),
        ]
        for page in self._pages:
            for route in page.routes():
                routes.append(Route(route.path, self._checked(route.endpoint), methods=list(route.methods or ())))
        return Starlette(routes=routes)

    def _checked(self, endpoint: Endpoint) -> Endpoint:
        """``endpoint``, with errors meant for a user as answers: text, and a status that says whose fault it is."""

        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except Refused as refusal:  # Starlette would make it a fault of the server's
                return PlainTextResponse(refusal.why, refusal.status)
            except NotFoundError as error:
                return PlainTextResponse(str(error), 404)
            except DaemonAccessError as error:
                return PlainTextResponse(str(error), 502)
            except CasemateError as error:
                return PlainTextResponse(str(error), 409)

        return answer

    async def _frame(self, _request: Request) -> Response:
        return HTMLResponse(rendering.render("frame.html", version=self._version))

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._assets:
            return PlainTextResponse("There is no such file", 404)
        return Response(self._assets[name], media_type=ASSETS[name])

    async def _events(self, request: Request) -> Response:
        topics = frozenset(request.query_params.get("topics", "").split())
        messages = self._streams.open(request.headers.get("last-event-id", ""), topics)
        return StreamingResponse(messages, media_type="text/event-stream")
