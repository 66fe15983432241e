"""Features, services, tags and notes of a qube. A service inside the qube is a feature ``service.NAME``."""

from __future__ import annotations

import json
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.forms import form
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view
from casemate.wire.errors import CasemateError, ValueInvalidError
from casemate.wire.requested_features import may_be_asked

SERVICE = "service."
_STATES = {"on": "1", "off": ""}


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""

    async def show(request: Request) -> Response:
        name = named(request)
        wish = json.dumps({"qubes": [name], "features": None, "tags": True})
        entry = json.loads(await site.api.call("admin.casemate.List", payload=wish))[0]
        found: dict[str, str] = entry.get("features", {})
        notes: str | None
        try:
            notes = await site.api.call("admin.vm.notes.Get", "", name)
        except CasemateError:
            notes = None  # this host has none
        return await tab(
            site, request, "features", "qube_features.html",
            features=[(key, found[key], may_be_asked(key)) for key in sorted(found) if not key.startswith(SERVICE)],
            services=[(key[len(SERVICE) :], found[key]) for key in sorted(found) if key.startswith(SERVICE)],
            tags=sorted(entry["tags"]), notes=notes,
        )  # fmt: skip

    async def set_feature(request: Request) -> Response:
        fields = await form(request, "feature", "value")
        await site.api.call("admin.vm.feature.Set", fields["feature"], named(request), fields["value"])
        return done()

    async def remove_feature(request: Request) -> Response:
        fields = await form(request, "feature")
        await site.api.call("admin.vm.feature.Remove", fields["feature"], named(request))
        return done()

    async def set_service(request: Request) -> Response:
        fields = await form(request, "service", "state")
        if fields["state"] not in _STATES:
            raise ValueInvalidError("A service is on or off")
        await site.api.call(
            "admin.vm.feature.Set", SERVICE + fields["service"], named(request), _STATES[fields["state"]]
        )
        return done()

    async def add_tag(request: Request) -> Response:
        fields = await form(request, "tag")
        await site.api.call("admin.vm.tag.Set", fields["tag"], named(request))
        return done()

    async def remove_tag(request: Request) -> Response:
        fields = await form(request, "tag")
        await site.api.call("admin.vm.tag.Remove", fields["tag"], named(request))
        return done()

    async def set_notes(request: Request) -> Response:
        fields = await form(request, "notes", "known")
        name = named(request)
        if await site.api.call("admin.vm.notes.Get", "", name) != fields["known"]:
            raise ValueInvalidError("The notes were changed meanwhile. Take your text, and press Undo to see them")
        await site.api.call("admin.vm.notes.Set", "", name, fields["notes"])
        return done()

    return (
        view("/qubes/{name}/features", show),
        change("/qubes/{name}/feature", set_feature),
        change("/qubes/{name}/feature/remove", remove_feature),
        change("/qubes/{name}/service", set_service),
        change("/qubes/{name}/tag", add_tag),
        change("/qubes/{name}/tag/remove", remove_tag),
        change("/qubes/{name}/notes", set_notes),
    )
