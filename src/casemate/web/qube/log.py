"""The log of a qube: what the process that serves its channel wrote, which is partly the qube's word."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.qube.head import named, tab
from casemate.web.site import Site, view
from casemate.wire.errors import printable

MAX_SHOWN = 64 << 10
"""Limit of the manager page (bytes): the end of a log that is shown."""
PROCESSES = ("link", "uplink")
"""Processes that write a log for each qube, as ``Settings.qube_log`` names them."""


def end_of(path: Path) -> str | None:
    """The last lines of a log, printable; None where there is none. OSError where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - MAX_SHOWN))
        data = file.read(MAX_SHOWN)
    if size > MAX_SHOWN:
        data = data.partition(b"\n")[2]
    return "\n".join(printable(line, 2000) for line in data.decode("utf-8", "replace").splitlines())


def routes(site: Site) -> Iterable[Route]:
    """The address of this tab."""

    async def show(request: Request) -> Response:
        name = named(request)
        logs: list[tuple[str, str]] = []
        for process in PROCESSES:
            try:
                text = await asyncio.to_thread(end_of, site.api.transport.settings.qube_log(process, name))
            except OSError as error:
                text = f"It cannot be read: {error.strerror}"
            if text is not None:
                logs.append((process, text))
        return await tab(site, request, "log", "qube_log.html", logs=logs)

    return (view("/qubes/{name}/log", show),)
