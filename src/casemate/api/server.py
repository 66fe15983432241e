"""The Admin API's unix socket: one connection is one call, and every call gets a reply.

The client sends its request and half-closes; `Connection` collects it, has ``dispatch.py`` carry it out, replies and
closes. What the reply must not depend on is bounded here: the size of a request, the time to send it and to fetch the
reply, and the number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import shutil
import socket
import stat
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

from casemate.api import dispatch, imports
from casemate.api.context import Context
from casemate.api.events import Subscription
from casemate.api.method import Access, Method
from casemate.api.methods import METHODS
from casemate.api.permissions import check_peer
from casemate.wire.admin import Request, RequestReader, failure
from casemate.wire.errors import CasemateError, ProtocolError

_log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
"""Limit of the Admin API (seconds): time to send a request and to fetch its reply."""
MAX_CONNECTIONS = 2048
"""Limit of the Admin API: connections at once."""
GROUP = "qubes"
"""Upstream's group of users who administer the host: they may use the sockets at upstream's places."""
_MAX_PATH = 107
"""Bytes of a unix socket's path, without the NUL (unix(7), sun_path)."""
_BACKLOG = 1024
"""Connections that wait to be accepted: a burst of tools must not see ECONNREFUSED while the loop is busy."""


class Connection(asyncio.Protocol):
    """One connection: one call, one reply. Made by `Server`, which keeps it until the connection is lost."""

    def __init__(self, server: Server, shared: bool = False) -> None:
        """``shared``: the mode of the socket's file decides who may connect, and the peer is not asked."""
        self._server = server
        self._shared = shared
        self._reader = RequestReader()
        self._answered = False
        self._import: imports.Import | None = None
        self._complete = False
        self._subscription: Subscription | None = None
        self._discard: Callable[[Subscription], None]
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the peer and the number of connections; start the deadline."""
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        try:
            if not self._shared:
                check_peer(transport.get_extra_info("socket"))
            if len(self._server.connections) > self._server.max_connections:
                raise CasemateError("The daemon has too many connections; try again")
        except CasemateError as error:
            self._answer(failure(error))
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._server.request_seconds, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Collect the request, or pass the data of an import on."""
        if self._answered:
            return
        if self._import is not None:
            self._take(data)
            return
        try:
            self._reader.feed(data)
            request = self._reader.begun(imports.METHODS)
            if request is None:
                return
            dispatch.find(request, self._server.methods)
            self._import = imports.Import(self._server.context.imports, request)
        except Exception as error:
            self._answer(dispatch.reply_to(error, None))
            return
        self._take(request.payload)

    def _take(self, data: bytes) -> None:
        """Write data for a volume; nothing more is read until it is written, so that a fast sender cannot fill
        memory."""
        transport = self._transport
        if transport is None:
            return
        transport.pause_reading()
        self._restart_clock()
        self._server.run(self._keep(transport, data))

    async def _keep(self, transport: asyncio.Transport, data: bytes) -> None:
        if self._import is None:
            return
        try:
            await asyncio.to_thread(self._import.feed, data)
        except Exception as error:
            self._answer(dispatch.reply_to(error, None))
        if self._answered:
            self._import.close()
        elif not transport.is_closing():
            transport.resume_reading()

    def _restart_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(self._server.request_seconds, self._too_slow)

    def eof_received(self) -> bool:
        """The request is complete: carry it out. True keeps the connection open for the reply."""
        if self._answered:
            return False
        if self._deadline is not None:
            self._deadline.cancel()
        self._complete = True
        if self._import is not None:
            self._server.run(self._put(self._import))
            return True
        request: Request | None = None
        try:
            request = self._reader.finish()
            method = dispatch.find(request, self._server.methods)
            if method.access is Access.STREAM:
                self._subscribe(method, request)
                return True
        except Exception as error:
            self._answer(dispatch.reply_to(error, request))
            return True
        if method.access is Access.READ:
            self._answer(dispatch.read(self._server.context, method, request))
        else:
            self._server.run(self._execute(method, request))
        return True

    async def _put(self, data: imports.Import) -> None:
        try:
            self._answer(await data.finish())
        except Exception as error:
            self._answer(dispatch.reply_to(error, data.request))

    async def _execute(self, method: Method, request: Request) -> None:
        self._answer(await dispatch.execute(self._server.context, method, request))

    def _subscribe(self, method: Method, request: Request) -> None:
        if self._transport is None:
            return
        self._subscription, self._discard = dispatch.subscribe(self._server.context, method, request, self._transport)
        self._answered = True

    def _too_slow(self) -> None:
        self._answer(failure(ProtocolError(f"The call was not complete within {self._server.request_seconds:g} s")))

    def _answer(self, reply: bytes) -> None:
        if self._answered or self._transport is None:
            return
        self._answered = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport.write(reply)
        self._transport.close()
        # A client that does not read would hold its connection for ever.
        self._deadline = asyncio.get_running_loop().call_later(self._server.request_seconds, self.abort)

    def pause_writing(self) -> None:
        """The socket is full."""
        if self._subscription is not None:
            self._subscription.pause()

    def resume_writing(self) -> None:
        """The socket takes more."""
        if self._subscription is not None:
            self._subscription.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up. A call that is under way goes on: a start that is half done helps nobody."""
        if self._import is not None and not self._answered and not self._complete:
            self._import.close()
        self._answered = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._subscription is not None:
            self._discard(self._subscription)
        self._server.connections.discard(self)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


class Server:
    """A listening socket that serves one family of methods: the Admin API's, ``internal.*`` or ``qubes.*``."""

    def __init__(
        self,
        context: Context,
        methods: Mapping[str, Method] = METHODS,
        *,
        request_seconds: float = REQUEST_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.context = context
        self.methods = methods
        self.request_seconds = request_seconds
        self.max_connections = max_connections
        self.connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None
        self._keeps_path = False
        self._second: asyncio.Server | None = None
        self._others: list[Path] = []
        self.last_active = 0.0
        """When the last call ended, on the loop's clock."""

    async def start(self, path: Path, given: socket.socket | None = None) -> None:
        """Listen on ``path``. A socket file that a killed daemon left is replaced; one that is served raises
        CasemateError. ``given``: a socket that listens there already and is systemd's, so that its file stays."""
        listener = bind(path) if given is None else given
        self._path = path
        self._keeps_path = given is not None
        self._listener = await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self), sock=listener, backlog=_BACKLOG
        )

    @property
    def name(self) -> str:
        """The file name of the socket."""
        return self._path.name if self._path is not None else ""

    async def also(self, path: Path, given: socket.socket | None = None) -> None:
        """Listen on a second path too, if that is possible: members of GROUP may use it where the group exists.

        ``given`` is as in ``start``. Its mode is the unit's, so it is looked at before the peer is not asked.
        """
        shared = False
        if given is not None:
            self._second = await self._listen(given, _is_for_group(path))
            return
        try:
            listener = bind(path)
            with contextlib.suppress(KeyError):
                shutil.chown(path, group=grp.getgrnam(GROUP).gr_gid)
                path.chmod(0o660)
                shared = True
        except (CasemateError, OSError) as error:
            _log.info("not serving %s: %s", path, error)
            return
        self._others.append(path)
        self._second = await self._listen(listener, shared)

    async def _listen(self, listener: socket.socket, shared: bool) -> asyncio.Server:
        return await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self, shared), sock=listener, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Stop listening, let running calls answer, then close what is left."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._second is not None:
            self._second.close()
            self._second = None
        # systemd goes on listening on a socket of its own, and starts a daemon when somebody connects.
        own = [self._path] if self._path is not None and not self._keeps_path else []
        for path in [*own, *self._others]:
            path.unlink(missing_ok=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
        for task in self._tasks:
            task.cancel()
        self.context.events.close()
        self.context.stats.close()
        for connection in list(self.connections):
            connection.abort()

    @property
    def busy(self) -> bool:
        """Whether a call is being carried out or somebody listens to events."""
        return bool(self._tasks) or bool(self.connections)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Carry out a call in the background."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.last_active = asyncio.get_running_loop().time()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a call ended without an answer", exc_info=task.exception())


def _is_for_group(path: Path) -> bool:
    """Whether a socket's file is open to its owner and GROUP, and to nobody else."""
    try:
        found = path.lstat()
        return found.st_mode & 0o007 == 0 and found.st_gid == grp.getgrnam(GROUP).gr_gid
    except (OSError, KeyError):
        return False


def bind(path: Path) -> socket.socket:
    """A listening socket at ``path``, for this user only; raises CasemateError where that cannot be had."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise CasemateError(f"{path} is too long for a socket; choose a shorter directory (CASEMATE_RUN)")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise CasemateError(f"{path} is there and is not a socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
                else:
                    raise CasemateError(f"{path}: another daemon listens there")
        before = os.umask(0o177)  # bind(2) makes the file: no moment at which others can connect
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
