"""The settings of a qube: a form for each property, made of what the daemon declares about it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.forms import form
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view

MOST_LISTED = 150
"""Qubes up to which a reference is chosen from a list; of more, names are typed and completed."""
GROUPS = (
    ("Label and other qubes", ("label", "vm")), ("Amounts", ("int",)), ("Switches", ("bool",)), ("Texts", ("str",)),
)  # fmt: skip
"""Titles, and the types of properties below each."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What properties that refer to something can be set to."""

    labels: list[str]
    qubes: list[str]
    used: dict[str, list[str]]
    """By property: the qubes that others have as its value, which are more likely meant."""


async def describe(site: Site, name: str) -> list[dict[str, Any]]:
    """All properties of a qube, as ``admin.casemate.property.Describe`` says them."""
    found: list[dict[str, Any]] = json.loads(await site.api.call("admin.casemate.property.Describe", "", name))
    return found


async def choices(site: Site, references: list[str]) -> Choices:
    """All labels and qubes. ``references`` are the properties that take a qube."""
    entries = json.loads(await site.api.call("admin.casemate.List", payload=json.dumps({"properties": references})))
    used: dict[str, set[str]] = {reference: set() for reference in references}
    for entry in entries:
        for reference, value in entry.get("properties", {}).items():
            used[reference].add(value["value"])
    return Choices(
        (await site.api.call("admin.label.List")).split(),
        [entry["name"] for entry in entries],
        {reference: sorted(found - {""}) for reference, found in used.items()},
    )


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""

    async def show(request: Request) -> Response:
        found = await describe(site, named(request))
        free = [prop for prop in found if prop["setting"] == "free"]
        groups = [
            (title, [prop for prop in free if not prop["kept"] and prop["type"] in types]) for title, types in GROUPS
        ]
        return await tab(
            site, request, "", "qube_settings.html",
            groups=[group for group in groups if group[1]],
            idle=[prop for prop in free if prop["kept"]],
            fixed=[prop for prop in found if prop["setting"] != "free"],
            choices=await choices(site, [prop["name"] for prop in free if prop["type"] == "vm"]),
            most_listed=MOST_LISTED,
        )  # fmt: skip

    async def set_value(request: Request) -> Response:
        fields = await form(request, "value")
        await site.api.call("admin.vm.property.Set", request.path_params["property"], named(request), fields["value"])
        return done()

    async def reset(request: Request) -> Response:
        await form(request)
        await site.api.call("admin.vm.property.Reset", request.path_params["property"], named(request))
        return done()

    return (
        view("/qubes/{name}", show),
        change("/qubes/{name}/property/{property}", set_value),
        change("/qubes/{name}/property/{property}/reset", reset),
    )
