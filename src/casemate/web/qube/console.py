"""The serial console of a running qube: bytes from the guest in one long answer, to it in short requests.

::

    browser: terminal                      casemate-web: Session                         guest
      POST /qubes/NAME/console ───────────▶ opens the console's terminal, a shell ──────▶ qubes.VMShell
      ◀── the answer's body, for ever ◀──── reads only while the browser reads ◀───────── /dev/ttyS0
      POST /console/ID ───────────────────▶ writes; refused where the guest reads nothing ▶

Bounded in both directions: the terminal is read when the last piece has been taken by the browser, and what the browser
sends is at most one request's body, which has to be written before the next. A session ends with its answer.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from casemate.client.console import Harmless, Shell, open_console
from casemate.client.qubes import Qubes
from casemate.web.forms import BODY_SECONDS, form
from casemate.web.guard import Refused
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view
from casemate.wire.errors import CasemateError, DisconnectedError, NotFoundError, NotRunningError
from casemate.wire.names import number

MAX_CONSOLES = 8
"""Limit of the manager page (consoles): open at once."""
MAX_INPUT = 16 << 10
"""Limit of the manager page (bytes): what is typed or pasted into a console in one request."""
WRITE_SECONDS = 5.0
"""Limit of the manager page (seconds): how long a guest that does not read its console may hold up what is typed."""
_PIECE = 16 << 10
"""Bytes that are read from the console at once."""


class Session:
    """One open console. Its answer's iterator owns it, and closes it at the end."""

    def __init__(self, name: str, fd: int, shell: Shell | None) -> None:
        self.name = name
        self._fd = fd
        self._shell = shell
        self._harmless = Harmless()
        self._loop = asyncio.get_running_loop()
        self._typing = asyncio.Lock()
        os.set_blocking(fd, False)
        if shell is not None and shell.sock is not None:
            shell.sock.setblocking(False)

    async def output(self) -> AsyncIterator[bytes]:
        """What may be shown of what the guest prints, until its machine or its shell ends."""
        try:
            while True:
                console, shell = await self._either()
                if console:
                    try:
                        data = os.read(self._fd, _PIECE)
                    except BlockingIOError:
                        continue
                    except OSError:  # EIO: the link has closed its side
                        data = b""
                    if not data:
                        yield b"\r\nThe machine has ended.\r\n"
                        return
                    if shown := self._harmless.pass_on(data):
                        yield shown
                elif shell and self._shell is not None and self._shell.ended():
                    yield b"\r\nThe shell has ended.\r\n"
                    return
        finally:
            self.close()

    async def _either(self) -> tuple[bool, bool]:
        """Wait until the console or the shell has something; which of them. Neither is watched while nobody waits here,
        so that a browser that reads slowly is not read for."""
        ready: asyncio.Future[tuple[bool, bool]] = self._loop.create_future()

        def tell(which: tuple[bool, bool]) -> None:
            if not ready.done():
                ready.set_result(which)

        sock = self._shell.sock if self._shell is not None else None
        self._loop.add_reader(self._fd, tell, (True, False))
        if sock is not None:
            self._loop.add_reader(sock, tell, (False, True))
        try:
            return await ready
        finally:
            self._loop.remove_reader(self._fd)
            if sock is not None:
                self._loop.remove_reader(sock)

    async def type(self, data: bytes) -> None:
        """Send bytes to the guest; Refused where it does not read them in WRITE_SECONDS, or others are on their way."""
        if self._typing.locked():
            raise Refused(429, "What was typed before is still on its way")
        async with self._typing:
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    while data:
                        try:
                            data = data[os.write(self._fd, data) :]
                        except BlockingIOError:
                            await self._writable()
            except TimeoutError:
                raise Refused(503, f"{self.name} does not read its console") from None
            except OSError:
                raise Refused(410, f"The console of {self.name} has ended") from None

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._fd, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            if self._fd >= 0:
                self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Let go of the console; what runs in the guest goes on."""
        if self._shell is not None:
            self._shell.close()
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1


class Consoles:
    """All open consoles of this process, by their secret names."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._open: dict[str, Session] = {}
        self._opening = 0

    async def open(self, name: str, rows: int, columns: int) -> tuple[str, AsyncIterator[bytes]]:
        """A new console of a running qube: the name of its session, and what the guest prints."""
        if len(self._open) + self._opening >= MAX_CONSOLES:
            raise Refused(503, f"{MAX_CONSOLES} consoles are open; close one")
        self._opening += 1
        try:
            path = (await self._site.api.call("admin.vm.Console", "", name)).strip()
            session, why = await asyncio.to_thread(_connect, Qubes(self._site.api.transport), path, name, rows, columns)
            made = Session(name, *session)
            ident = secrets.token_urlsafe(16)
            self._open[ident] = made
        finally:
            self._opening -= 1
        return ident, self._output(ident, made, why)

    async def _output(self, ident: str, session: Session, why: str) -> AsyncIterator[bytes]:
        try:
            yield f"{why}\r\n".encode("ascii", "replace") if why else b""
            async for data in session.output():
                yield data
        finally:
            self._open.pop(ident, None)
            session.close()

    def session(self, ident: str) -> Session:
        """An open console; NotFoundError where it has ended."""
        if (found := self._open.get(ident)) is None:
            raise NotFoundError(message="This console has ended")
        return found


def _connect(qubes: Qubes, path: str, name: str, rows: int, columns: int) -> tuple[tuple[int, Shell | None], str]:
    """The console's descriptor, a shell on the guest's side, and why there is none. In a thread: it may block."""
    fd = open_console(path, name)
    try:
        return (fd, Shell(qubes, name, rows, columns, "xterm")), ""
    except (DisconnectedError, NotRunningError, OSError) as error:
        return (fd, None), f"No shell: the agent of {name} cannot be reached ({error}); what it prints is shown."
    except BaseException:
        os.close(fd)
        raise


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""
    consoles = Consoles(site)

    async def show(request: Request) -> Response:
        return await tab(site, request, "console", "qube_console.html")

    async def begin(request: Request) -> Response:
        fields, name = await form(request, "rows", "columns"), named(request)
        rows, columns = number(fields["rows"], "rows", 5, 200), number(fields["columns"], "columns", 20, 500)
        ident, output = await consoles.open(name, rows, columns)
        return StreamingResponse(output, media_type="application/octet-stream", headers={"x-console": ident})

    async def type_in(request: Request) -> Response:
        session = consoles.session(request.path_params["ident"])
        try:
            async with asyncio.timeout(BODY_SECONDS):
                data = await request.body()
        except TimeoutError:
            raise Refused(408, "The request did not come to an end") from None
        if len(data) > MAX_INPUT:
            raise CasemateError(f"At most {MAX_INPUT} bytes can be typed at once")
        await session.type(data)
        return done()

    return (
        view("/qubes/{name}/console", show),
        change("/qubes/{name}/console", begin),
        change("/console/{ident}", type_in),
    )
