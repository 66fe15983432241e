"""Listens on each running qube's call socket, ``broker.sock``, and reads the request of each connection.

The socket lies in the qube's own run-time directory, which only the qube's link may search. Whoever connects is that
qube, whatever it says. One connection is one call: the link writes one line of JSON, ``{"service": ..., "target":
...}``, and gets one line back, from whoever serves the request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from casemate.settings import Settings
from casemate.wire.errors import CasemateError, ProtocolError, printable
from casemate.wire.link import parse_object
from casemate.wire.qrexec import parse_call, requested_target

log = logging.getLogger(__name__)

MAX_REQUEST = 4096
"""Bytes of a request: several times the longest service with its argument (wire.qrexec.MAX_CALL) and target."""
REQUEST_SECONDS = 10.0
"""Seconds that a link has for its request after it connected. It writes the whole request at once."""
MAX_WAITING = 256
"""Connections of one qube whose request has not been read yet. Each costs the daemon a descriptor."""
ACCEPT_PAUSE = 0.1
"""Seconds before the next ``accept`` after one failed (EMFILE): enough for some descriptor to be closed."""
BACKLOG = 128


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A parsed request. ``refused``: a link of an earlier version has refused the call already, as one too many."""

    source: str
    service: str
    argument: str | None
    target: str
    refused: bool


Handler = Callable[[socket.socket, CallRequest], Awaitable[None]]
"""Serves one request. The connection is closed when it returns."""

DENY = b'{"result": "deny"}\n'


class CallListener:
    """The call sockets of all running qubes. A start opens a qube's socket before its link, a stop closes it after.

    Whoever serves requests says so with ``serve`` before the first socket is opened.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._handler: Handler | None = None
        self._listening: dict[str, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._waiting: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, handler: Handler) -> None:
        """Let ``handler`` serve all requests from now on."""
        self._handler = handler

    async def open(self, name: str) -> None:
        """Listen for the qube's calls; replaces the socket of an earlier daemon."""
        await self.close(name)
        path = self._settings.qube_run(name) / "broker.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Mode 0777: the link runs as the qube's user. Only that user may search the directory (mode 0700).
        old = os.umask(0)
        try:
            listener.bind(bytes(path))
        finally:
            os.umask(old)
        listener.listen(BACKLOG)
        self._listening[name] = (listener, asyncio.create_task(self._accept(name, listener)))

    async def close(self, name: str) -> None:
        """Stop listening for the qube; nothing to do when nobody listens. Calls under way go on."""
        found = self._listening.pop(name, None)
        if found is not None:
            listener, task = found
            task.cancel()
            # Not before the loop has let go of the descriptor: its number may be another file's at once, for which the
            # loop would then ask the kernel nothing, as it believes that it has.
            await asyncio.wait({task})
            listener.close()

    async def close_all(self) -> None:
        """Stop listening for all qubes and cancel the handlers."""
        for name in list(self._listening):
            await self.close(name)
        for task in list(self._tasks):
            task.cancel()

    async def _accept(self, name: str, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _address = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely. That passes, so the loop must not end.
                log.warning("call socket of %s: %s", name, error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if self._waiting.get(name, 0) >= MAX_WAITING:
                connection.close()
                continue
            self._waiting[name] = self._waiting.get(name, 0) + 1
            task = asyncio.create_task(self._serve(name, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, name: str, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            try:
                request = await self._read(name, connection)
            except (CasemateError, OSError) as error:
                log.warning("request of %s: %s", name, printable(str(error)))
                answer(connection, DENY)
                return
            if self._handler is None:
                answer(connection, DENY)
                return
            await self._handler(connection, request)

    async def _read(self, name: str, connection: socket.socket) -> CallRequest:
        try:
            return await _read_request(name, connection)
        finally:
            left = self._waiting[name] - 1
            if left:
                self._waiting[name] = left
            else:
                del self._waiting[name]


def answer(connection: socket.socket, line: bytes) -> None:
    """Write one line to a link that may be gone."""
    try:
        connection.send(line)
    except OSError:
        pass


async def _read_request(source: str, connection: socket.socket) -> CallRequest:
    loop, data = asyncio.get_running_loop(), b""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            while not data.endswith(b"\n"):
                more = await loop.sock_recv(connection, MAX_REQUEST)
                data += more
                if not more or len(data) > MAX_REQUEST:
                    raise ProtocolError("broken request")
    except TimeoutError:
        raise ProtocolError("request not finished in time") from None
    untrusted: dict[str, Any] = parse_object(data, "request of a link")
    untrusted_service, untrusted_target = untrusted.get("service"), untrusted.get("target")
    if not isinstance(untrusted_service, str) or not isinstance(untrusted_target, str):
        raise ProtocolError("broken request")
    service, argument = parse_call(untrusted_service)
    return CallRequest(
        source, service, argument, requested_target(untrusted_target), untrusted.get("refused") == "rate"
    )
