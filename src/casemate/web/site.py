"""What the pages of one qube are given, and the short forms of their answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from casemate.web import rendering
from casemate.web.actions import Actions
from casemate.web.admin_api import AdminApi
from casemate.web.live import Live

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Site:
    """What serves one daemon. One for the process."""

    api: AdminApi
    live: Live
    actions: Actions
    read_only: bool

    def page(self, template: str, **values: object) -> Response:
        """A template as an answer. Every template may ask whether the page is ``read_only``."""
        return HTMLResponse(rendering.render(template, read_only=self.read_only, **values))


def view(path: str, endpoint: Endpoint) -> Route:
    """What is shown at ``#PATH``: HTML for the main part of the window."""
    return Route(f"/view{path}", endpoint)


def change(path: str, endpoint: Endpoint) -> Route:
    """A POST that changes something. The guard refuses it on a read-only page."""
    return Route(path, endpoint, methods=["POST"])


def done(text: str = "", *, show: str = "") -> Response:
    """The answer to a change that was made: a sentence for a person, and the address that the browser shows next."""
    return PlainTextResponse(text, headers={"x-next": f"#{show}"} if show else None)
