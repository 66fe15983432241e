"""Programs of a qube: the entries of its menus, which are the qube's word, each started in it by a click."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.client.calling import open_stream
from casemate.client.qubes import Qubes
from casemate.web.forms import form
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, NotFoundError
from casemate.wire.menus import MenuEntry, parse_lines
from casemate.wire.qrexec import JUST_EXEC, Command, exec_message

SERVICE = "qubes.StartApp"


async def menus(site: Site, qube: str) -> list[MenuEntry]:
    """The entries of a qube's menus, or of its template's."""
    try:
        return parse_lines(await site.api.call("admin.casemate.Menus", "", qube))
    except CasemateError:
        return []  # this host has none


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""

    async def show(request: Request) -> Response:
        return await tab(site, request, "programs", "qube_programs.html", entries=await menus(site, named(request)))

    async def start(request: Request) -> Response:
        fields, name = await form(request, "program"), named(request)
        if fields["program"] not in {entry.ident for entry in await menus(site, name)}:
            raise NotFoundError(message=f"{name} has no such entry in its menus")
        message = exec_message(Command("DEFAULT", SERVICE, fields["program"], ADMIN).cmdline(), JUST_EXEC)
        qubes = Qubes(site.api.transport)

        def ask() -> None:
            open_stream(qubes, name, message, autostart=False).close()

        await site.api.call("admin.vm.CurrentState", "", name)
        await asyncio.to_thread(ask)
        return done(f"{name} was asked to start {fields['program']}")

    return view("/qubes/{name}/programs", show), change("/qubes/{name}/program", start)
