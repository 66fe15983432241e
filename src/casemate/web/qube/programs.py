"""Programs of a qube: the entries of its menus, which are the qube's word, each started in it by a click."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.client.calling import open_stream
from casemate.client.qubes import Qubes
from casemate.web.forms import form
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import ADMIN
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import CasemateError, DisconnectedError, NotFoundError
from casemate.wire.menus import MenuEntry, parse_lines
from casemate.wire.qrexec import JUST_EXEC, Command, exec_message

SERVICE = "qubes.StartApp"
START_SECONDS = 20.0
"""Limit of the manager page (seconds): how long a qube may take to start a program."""
MAX_STARTING = 4
"""Limit of the manager page (programs): started at the same time; others wait."""


async def menus(site: Site, qube: str) -> list[MenuEntry]:
    """The entries of a qube's menus, or of its template's."""
    try:
        return parse_lines(await site.api.call("admin.casemate.Menus", "", qube))
    except CasemateError:
        return []  # this host has none


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""
    # Not the event loop's own threads, which connections to the daemon need: a qube may be slow.
    starters = ThreadPoolExecutor(MAX_STARTING, "start")

    async def show(request: Request) -> Response:
        return await tab(site, request, "programs", "qube_programs.html", entries=await menus(site, named(request)))

    async def start(request: Request) -> Response:
        fields, name = await form(request, "program"), named(request)
        if fields["program"] not in {entry.ident for entry in await menus(site, name)}:
            raise NotFoundError(message=f"{name} has no such entry in its menus")
        message = exec_message(Command("DEFAULT", SERVICE, fields["program"], ADMIN).cmdline(), JUST_EXEC)
        qubes = Qubes(site.api.transport)

        def ask() -> int:
            side, end = CallerSide(), time.monotonic() + START_SECONDS
            with open_stream(qubes, name, message, autostart=False) as sock:
                while side.exit_code is None:
                    # However much the qube says: the sum of its time is bounded.
                    sock.settimeout(max(0.001, end - time.monotonic()))
                    if not (data := sock.recv(65536)):
                        break
                    for _untrusted_output in side.feed(data):
                        pass
            return side.status()

        try:
            code = await asyncio.get_running_loop().run_in_executor(starters, ask)
        except OSError as error:
            raise DisconnectedError(f"{name} does not answer: {error.strerror or error}") from error
        if code:
            raise CasemateError(f"{name} could not start {fields['program']}: its service ended with {code}")
        return done(f"{name} starts {fields['program']}")

    return view("/qubes/{name}/programs", show), change("/qubes/{name}/program", start)
