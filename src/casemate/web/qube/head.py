"""What every tab of a qube begins with: its name, state and buttons, and the other tabs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from casemate.web.actions import Verb, verbs_for
from casemate.web.live import SHOWN, Row
from casemate.web.site import Site
from casemate.wire.admin import ADMIN
from casemate.wire.names import qube_name

TABS = (
    ("", "Settings"), ("features", "Features"), ("volumes", "Volumes"), ("devices", "Devices"),
    ("firewall", "Firewall"), ("programs", "Programs"), ("log", "Log"), ("console", "Console"),
)  # fmt: skip
"""Last word of the address, and title."""


@dataclass(frozen=True, slots=True)
class Head:
    """A qube as all its tabs show it."""

    row: Row
    verbs: dict[str, Verb]
    """What its buttons can do now."""
    is_host: bool
    """Whether it is this host: that can be neither started nor removed."""


def named(request: Request) -> str:
    """The qube in the address; ValueInvalidError for text that no qube can have as its name."""
    return str(qube_name(request.path_params["name"]))


async def head(site: Site, name: str) -> Head:
    """What is so now; NotFoundError where there is no such qube."""
    wish = json.dumps({"qubes": [name], "properties": list(SHOWN)})
    entry = json.loads(await site.api.call("admin.casemate.List", payload=wish))[0]
    known = site.live.rows.get(name)
    row = await site.live.row_of(entry)
    busy = known.busy if known is not None else ""
    verbs = {} if site.read_only or busy else verbs_for(row.state, name)
    return Head(row, verbs, name == ADMIN)


async def tab(site: Site, request: Request, word: str, template: str, **values: object) -> Response:
    """A tab of a qube as an answer."""
    found = await head(site, named(request))
    return site.page(template, head=found, name=found.row.name, tabs=TABS, tab=word, **values)
