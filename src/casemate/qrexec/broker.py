"""Decides about calls that qubes make, and joins the two ends; it is not in the data path.

Each running qube has a door, a socket of its own in its run-time directory: who knocks there is that qube, whatever
it says. One connection is one call: a line of JSON ``{"service": ..., "target": ...}``, answered by one; with
``{"result": "allow"}`` comes a descriptor, the other end's call stream. The link keeps the connection until the call
ends, so that a disposable made for it can be removed then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from casemate.qrexec.evaluate import Allow, Deny, SystemInfo, evaluate
from casemate.qrexec.files import PolicyFiles
from casemate.settings import Settings
from casemate.wire.errors import CallRefusedError, CasemateError, PolicyError, ProtocolError, printable
from casemate.wire.link import parse_object
from casemate.wire.names import qube_name
from casemate.wire.qrexec import Command, exec_message, parse_call, requested_target

log = logging.getLogger(__name__)

MAX_REQUEST = 4096
REQUEST_SECONDS = 10.0
DISPOSABLE = "@dispvm:"
API_SERVICES = ("admin.", "policy.")
"""Beginnings of the services that this host's daemon serves itself, whatever qube they are asked of."""


@dataclass(frozen=True)
class Actions:
    """What the broker needs done by others."""

    system_info: Callable[[], SystemInfo]
    start: Callable[[str], Awaitable[None]]
    is_running: Callable[[str], bool]
    create_disposable: Callable[[str], Awaitable[str]]
    remove_disposable: Callable[[str], Awaitable[None]]
    run_on_host: Callable[[socket.socket, str, str, str, str], Awaitable[None]]
    """Run a service here on the given call stream: (socket, source, service, argument, requested target)."""


def _is_ours(service: str, decision: Allow) -> bool | None:
    """Whether the API serves an allowed call; None for other services.

    A rule that lets a qube use all services of another qube was not meant to make it that qube's master: only a rule
    that names the service, or whose target is the host, says that.
    """
    if not service.startswith(API_SERVICES):
        return None
    return decision.target in ("@adminvm", "dom0") or decision.rule.service is not None


class Broker:
    """Serves the doors of all running qubes."""

    def __init__(self, settings: Settings, policy: PolicyFiles, actions: Actions) -> None:
        self._settings = settings
        self._policy = policy
        self._actions = actions
        self._doors: dict[str, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    async def open_door(self, name: str) -> None:
        """Listen for the qube's calls; replaces a door of an earlier daemon."""
        await self.close_door(name)
        path = self._settings.qube_run(name) / "broker.sock"
        path.unlink(missing_ok=True)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        old = os.umask(0)
        try:
            door.bind(bytes(path))  # anyone who may search the qube's own 0700 directory: the qube's link
        finally:
            os.umask(old)
        door.listen(128)
        self._doors[name] = (door, asyncio.create_task(self._serve(name, door)))

    async def close_door(self, name: str) -> None:
        """Stop listening for the qube."""
        found = self._doors.pop(name, None)
        if found is not None:
            door, task = found
            task.cancel()
            door.close()

    async def close(self) -> None:
        """Close all doors; calls under way go on without us."""
        for name in list(self._doors):
            await self.close_door(name)
        for call in list(self._calls):
            call.cancel()

    async def _serve(self, name: str, door: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _address = await loop.sock_accept(door)
            call = asyncio.create_task(self._call(name, connection))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, source: str, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        disposable: str | None = None
        with connection:
            connection.setblocking(False)
            try:
                service, arg, target = await self._request(connection)
                stream, disposable = await self._decide(source, service, arg, target)
                with stream:
                    socket.send_fds(connection, [b'{"result": "allow"}\n'], [stream.fileno()])
                # The link holds the connection while the call lives; it never sends more.
                while await loop.sock_recv(connection, 4096):
                    pass
            except CallRefusedError as refusal:
                log.info("call of %s refused: %s", source, refusal)
                self._answer(connection, {"result": "deny"})
            except CasemateError as error:
                log.warning("call of %s failed: %s", source, printable(str(error)))
                self._answer(connection, {"result": "deny"})
            except OSError as error:
                log.debug("call of %s ended: %s", source, error)
            except Exception:
                log.exception("call of %s failed", source)
                self._answer(connection, {"result": "deny"})
            finally:
                if disposable is not None:
                    await self._actions.remove_disposable(disposable)

    @staticmethod
    def _answer(connection: socket.socket, body: dict[str, str]) -> None:
        try:
            connection.send(json.dumps(body).encode() + b"\n")
        except OSError:
            pass

    @staticmethod
    async def _request(connection: socket.socket) -> tuple[str, str | None, str]:
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
        request = parse_object(data, "request of a link")
        untrusted_service, untrusted_target = request.get("service"), request.get("target")
        if not isinstance(untrusted_service, str) or not isinstance(untrusted_target, str):
            raise ProtocolError("broken request")
        service, arg = parse_call(untrusted_service)
        return service, arg, requested_target(untrusted_target)

    async def _decide(
        self, source: str, service: str, arg: str | None, target: str
    ) -> tuple[socket.socket, str | None]:
        call = f"{service}+{arg or ''}"
        try:
            policy = self._policy.current()
        except PolicyError as error:
            log.error("policy is broken, everything is denied: %s", error)
            raise CallRefusedError(f"{call} to {printable(target)}: {error}") from None
        decision = evaluate(policy, self._actions.system_info(), source, service, arg or "", target)
        if isinstance(decision, Deny):
            raise CallRefusedError(f"{call} to {printable(target)}: {decision.reason}")
        if not isinstance(decision, Allow):
            raise CallRefusedError(f"{call} to {printable(target)}: there is nobody to ask")
        return await self._join(source, service, arg, target, decision)

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the policy lets a qube make a call; a broken policy lets nothing."""
        try:
            policy = self._policy.current()
        except PolicyError:
            return False
        found = evaluate(policy, self._actions.system_info(), source, service, argument, target)
        return isinstance(found, Allow) and _is_ours(service, found) is True

    async def _join(
        self, source: str, service: str, arg: str | None, target: str, decision: Allow
    ) -> tuple[socket.socket, str | None]:
        final = decision.target
        is_ours = _is_ours(service, decision)
        if is_ours is False:
            raise CallRefusedError(f"{service}: {decision.rule.place} allows all services, not this one of the host")
        if is_ours or final in ("@adminvm", "dom0"):
            ours, theirs = socket.socketpair()
            # A rule that sends a call about a qube to this host leaves what it is about; one that names another qube
            # replaces that.
            about = target if final in ("@adminvm", "dom0") else final
            with ours:
                await self._actions.run_on_host(ours, source, service, arg or "", about)
            return theirs, None
        disposable: str | None = None
        if final.startswith(DISPOSABLE):
            final = disposable = await self._actions.create_disposable(final.removeprefix(DISPOSABLE))
        try:
            if not self._actions.is_running(final):
                if not decision.autostart and disposable is None:
                    raise CallRefusedError(f"{final} does not run and the rule says autostart=no")
                await self._actions.start(final)
            command = Command(decision.user or "DEFAULT", service, arg, source)
            return await self._connect(final, exec_message(command.cmdline())), disposable
        except BaseException:
            if disposable is not None:
                await self._actions.remove_disposable(disposable)
            raise

    async def _connect(self, name: str, message: bytes) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stream, str(self._settings.link_socket(qube_name(name))))
            await loop.sock_sendall(stream, message)
        except OSError as error:
            stream.close()
            raise CallRefusedError(f"{name} cannot be reached: {error.strerror}") from None
        except BaseException:
            stream.close()
            raise
        return stream
