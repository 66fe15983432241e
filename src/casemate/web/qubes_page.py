"""The table of qubes: its frame with saved views, and what is done to several qubes at once."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from casemate.web.actions import VERBS
from casemate.web.forms import form
from casemate.web.saved_views import SavedViews, view_of
from casemate.web.site import Site, change, done, view
from casemate.wire.errors import NotFoundError, ValueInvalidError
from casemate.wire.names import qube_name

MAX_SELECTED = 1000
"""Limit of the manager page (qubes): those to which something is done at once."""


class QubesPage:
    """The rows themselves come by the stream."""

    def __init__(self, site: Site, views: SavedViews | None = None) -> None:
        self._site = site
        self._views = views if views is not None else SavedViews()

    def routes(self) -> list[Route]:
        """The addresses of the table."""
        return [
            view("/qubes", self._table),
            view("/dialog/view", self._dialog),
            change("/views", self._save),
            change("/views/remove", self._forget),
            change("/qubes/{name}/do/{verb}", self._act),
            change("/selected/{verb}", self._act_on_many),
        ]

    async def _table(self, _request: Request) -> Response:
        return self._site.page("qubes.html", views=await asyncio.to_thread(self._views.all), verbs=VERBS)

    async def _dialog(self, request: Request) -> Response:
        fields = {key: request.query_params.get(key, "") for key in ("filter", "which", "order")}
        return self._site.page("dialog_view.html", fields=fields)

    async def _save(self, request: Request) -> Response:
        fields = await form(request, "name", "filter", "which", "order")
        await asyncio.to_thread(self._views.save, view_of(fields))
        return done()

    async def _forget(self, request: Request) -> Response:
        fields = await form(request, "name")
        await asyncio.to_thread(self._views.remove, fields["name"])
        return done()

    async def _act(self, request: Request) -> Response:
        name = str(qube_name(request.path_params["name"]))
        await form(request)  # nothing is expected in it; it is read, and bounded, as any other
        self._site.actions.begin(_verb(request), name)
        return PlainTextResponse("", 202)

    async def _act_on_many(self, request: Request) -> Response:
        """Those in whose state the verb makes no sense are left out: a selection is made before, and may be old."""
        word, fields = _verb(request), await form(request, "names")
        names = sorted({str(qube_name(name)) for name in fields["names"].split()})
        if not 1 <= len(names) <= MAX_SELECTED:
            raise ValueInvalidError(f"Between 1 and {MAX_SELECTED} qubes can be selected")
        rows = self._site.live.rows
        fit = [
            name for name in names if name in rows and rows[name].state in VERBS[word].states and not rows[name].busy
        ]
        if not fit:
            raise ValueInvalidError(f"{VERBS[word].label}: none of those qubes is in a state for that")
        self._site.actions.begin_many(word, fit)
        left = len(names) - len(fit)
        return PlainTextResponse(
            f"{VERBS[word].label}: asked of {len(fit)}{f', and not of {left} in another state' if left else ''}", 202
        )


def _verb(request: Request) -> str:
    word: str = request.path_params["verb"]
    if word not in VERBS:
        raise NotFoundError(message="There is no such action")
    return word
