"""Volumes of a qube: where they are, how large, their older states; revert, resize, how many states are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.forms import form
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view
from casemate.wire.errors import CasemateError, ValueInvalidError
from casemate.wire.names import number

UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}
MAX_SIZE = 1 << 60
"""Bytes. The daemon has a bound of its own; this one keeps the multiplication sensible."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as the tab shows it."""

    name: str
    facts: dict[str, str]
    """What ``admin.vm.volume.Info`` says."""
    revisions: list[str]
    """Older states, newest first."""
    trouble: str = ""
    """Why the daemon cannot tell about it."""

    @property
    def kind(self) -> str:
        """What becomes of it, in words."""
        if self.facts.get("save_on_stop") == "True":
            return "kept when the qube stops"
        if self.facts.get("snap_on_start") == "True":
            return "a copy of the template's at each start"
        return "thrown away when the qube stops" if self.facts.get("rw") == "True" else "only read"


async def read(site: Site, qube: str, name: str) -> Volume:
    """What the daemon says about a volume; what it cannot tell is in ``trouble``, so that one does not hide others."""
    try:
        info, revisions = await asyncio.gather(
            site.api.call("admin.vm.volume.Info", name, qube),
            site.api.call("admin.vm.volume.ListSnapshots", name, qube),
        )
    except CasemateError as error:
        return Volume(name, {}, [], str(error))
    pairs = (line.partition("=") for line in info.splitlines())
    return Volume(name, {key: value for key, found, value in pairs if found}, revisions.split()[::-1])


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""

    async def show(request: Request) -> Response:
        name = named(request)
        listed = (await site.api.call("admin.vm.volume.List", "", name)).split()
        found = await asyncio.gather(*(read(site, name, volume) for volume in listed))
        return await tab(site, request, "volumes", "qube_volumes.html", volumes=found, units=list(UNITS))

    async def resize(request: Request) -> Response:
        fields = await form(request, "size", "unit")
        if fields["unit"] not in UNITS:
            raise ValueInvalidError(f"The unit of a size is one of {', '.join(UNITS)}")
        size = number(fields["size"], "size", 1, MAX_SIZE // UNITS[fields["unit"]]) * UNITS[fields["unit"]]
        await site.api.call("admin.vm.volume.Resize", request.path_params["volume"], named(request), str(size))
        return done()

    async def revert(request: Request) -> Response:
        fields = await form(request, "revision")
        await site.api.call("admin.vm.volume.Revert", request.path_params["volume"], named(request), fields["revision"])
        return done(f"{request.path_params['volume']} has its older content again")

    async def keep(request: Request) -> Response:
        fields = await form(request, "revisions")
        await site.api.call(
            "admin.vm.volume.Set.revisions_to_keep", request.path_params["volume"], named(request), fields["revisions"]
        )
        return done()

    return (
        view("/qubes/{name}/volumes", show),
        change("/qubes/{name}/volume/{volume}/resize", resize),
        change("/qubes/{name}/volume/{volume}/revert", revert),
        change("/qubes/{name}/volume/{volume}/keep", keep),
    )
