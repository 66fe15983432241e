"""Decides about calls that qubes make, and joins the two ends; it is not in the data path.

Each running qube has a door, a socket of its own in its run-time directory: who knocks there is that qube, whatever
it says. One connection is one call: a line of JSON ``{"service": ..., "target": ...}``, answered by one; with
``{"result": "allow"}`` comes a descriptor, the other end's call stream. The link keeps the connection until the call
ends, so that a disposable made for it can be removed then; before it lets go it may say ``exit STATUS``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from casemate.qrexec.calls import Call, Calls
from casemate.qrexec.decide import Asker, Question, decide, decide_now
from casemate.qrexec.evaluate import NOT_CHOSEN, Allow, Deny, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.rate import Rate
from casemate.settings import Settings
from casemate.wire.errors import CallRefusedError, CasemateError, ProtocolError, printable
from casemate.wire.link import parse_object
from casemate.wire.names import qube_name
from casemate.wire.qrexec import Command, exec_message, parse_call, requested_target

log = logging.getLogger(__name__)

MAX_REQUEST = 4096
REQUEST_SECONDS = 10.0
SETUP_SECONDS = 170.0
"""From request to connection, a question to the user and the start of the target in it; links wait little longer."""
KNOCKING_OF_ONE = 256
"""Connections of one link that have not said yet what they want."""
CALLS_PER_SECOND, CALL_BURST = 100.0, 400.0
"""What a link may pass on; one that keeps to its own limits, which are half of these, never meets them."""
ACCEPT_PAUSE = 0.1
T = TypeVar("T")
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
    if not service.startswith(API_SERVICES) or decision.remote is not None:
        return None
    return decision.target in ("@adminvm", "dom0") or decision.rule.service is not None


async def _nobody(question: Question) -> str:
    raise CallRefusedError("there is nobody to ask", NOT_CHOSEN)


class Broker:
    """Serves the doors of all running qubes."""

    def __init__(
        self,
        settings: Settings,
        policy: PolicyFiles,
        actions: Actions,
        asker: Asker = _nobody,
        calls: Calls | None = None,
        notify: Callable[[str, str, str, str, str], None] = lambda *_: None,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._actions = actions
        self._asker = asker
        self._calls = calls if calls is not None else Calls()
        self._notify = notify
        self._doors: dict[str, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._knocking: dict[str, int] = {}
        self._rate = Rate(CALLS_PER_SECOND, CALL_BURST)

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
        for task in list(self._tasks):
            task.cancel()

    async def _serve(self, name: str, door: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _address = await loop.sock_accept(door)
            except OSError as error:  # no descriptors left: that passes, and the door must not close for it
                log.warning("door of %s: %s", name, error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if self._knocking.get(name, 0) >= KNOCKING_OF_ONE:
                connection.close()
            else:
                self._knocking[name] = self._knocking.get(name, 0) + 1
                self._task(self._call(name, connection))

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that goes on when nobody waits for it any more."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _call(self, source: str, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            try:
                service, arg, target, is_too_fast = await self._heard(source, connection)
                if is_too_fast or not self._rate.allows(source):
                    self._answer(connection, {"result": "deny"})
                    self._calls.not_begun(source, service, arg or "", target, "rate", "the qube asks too often")
                    return
                call = self._calls.begin(source, service, arg or "", target)
            except CallRefusedError:
                self._answer(connection, {"result": "deny"})
                return
            except (CasemateError, OSError) as error:
                log.warning("request of %s: %s", source, printable(str(error)))
                self._answer(connection, {"result": "deny"})
                return
            status: int | None = None
            try:
                status = await self._live(connection, call, arg)
            finally:
                self._calls.ended(call, status)

    async def _live(self, connection: socket.socket, call: Call, arg: str | None) -> int | None:
        """A call from its request to its end; its exit status if the link has told it."""
        disposable: str | None = None
        try:
            stream, disposable = await self._before_deadline(connection, self._set_up(call, arg))
            with stream:
                socket.send_fds(connection, [b'{"result": "allow"}\n'], [stream.fileno()])
            self._calls.step(call, "connected")
            return await self._until_end(connection)
        except CallRefusedError as refusal:
            self._refuse(connection, call, refusal.cause, str(refusal))
        except CasemateError as error:
            self._refuse(connection, call, "failed", str(error))
        except OSError as error:
            self._refuse(connection, call, "gone", str(error))
        except Exception:
            log.exception("%s failed", call)
            self._refuse(connection, call, "fault", "a fault of ours; see the log")
        finally:
            if disposable is not None:
                await self._actions.remove_disposable(disposable)
        return None

    def _refuse(self, connection: socket.socket, call: Call, cause: str, why: str) -> None:
        self._calls.refused(call, cause, why)
        self._answer(connection, {"result": "deny"})

    async def _before_deadline(self, connection: socket.socket, work: Coroutine[Any, Any, T]) -> T:
        """The result of setting a call up, unless that takes too long or the caller goes away before."""
        # The link says nothing until it has the answer: whatever comes before is its end.
        gone = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(connection, 1))
        task = self._task(work)
        try:
            await asyncio.wait({task, gone}, timeout=SETUP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            if gone.done():
                raise CallRefusedError("the caller went away", "gone")
            raise CallRefusedError(f"not set up within {SETUP_SECONDS:g} seconds", "timeout")
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            gone.cancel()
            await asyncio.wait({gone})
            if not gone.cancelled():
                gone.exception()

    @staticmethod
    async def _until_end(connection: socket.socket) -> int | None:
        """Wait until the link lets go; the exit status that it may tell before."""
        loop, told = asyncio.get_running_loop(), b""
        while data := await loop.sock_recv(connection, 4096):
            told = (told + data)[-64:]
        words = told.split()
        return int(words[1]) if len(words) == 2 and words[0] == b"exit" and words[1].isdigit() else None

    @staticmethod
    def _answer(connection: socket.socket, body: dict[str, str]) -> None:
        try:
            connection.send(json.dumps(body).encode() + b"\n")
        except OSError:
            pass

    async def _heard(self, source: str, connection: socket.socket) -> tuple[str, str | None, str, bool]:
        """The request of one who has knocked."""
        try:
            return await self._request(connection)
        finally:
            left = self._knocking[source] - 1
            if left:
                self._knocking[source] = left
            else:
                del self._knocking[source]

    @staticmethod
    async def _request(connection: socket.socket) -> tuple[str, str | None, str, bool]:
        """Service, argument, target; and whether the link has refused the call already, as too many."""
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
        return service, arg, requested_target(untrusted_target), request.get("refused") == "rate"

    async def _set_up(self, call: Call, arg: str | None) -> tuple[socket.socket, str | None]:
        source, service, argument, target = call.source, call.service, call.argument, call.target

        async def ask(question: Question) -> str:
            self._calls.step(call, "asking")
            return await self._asker(question)

        decision = await decide(self._policy, self._actions.system_info, ask, source, service, argument, target)
        if isinstance(decision, Deny):
            if decision.notify:
                self._notify("deny", source, service, argument, target)
            raise CallRefusedError(decision.reason, decision.cause)
        final = decision.remote or decision.target
        self._calls.step(call, "decided", why=f"allowed by {decision.rule.place}", final=final)
        try:
            stream = await self._join(call, arg, decision)
        except CasemateError:
            if decision.notify:
                self._notify("fail", source, service, argument, final)
            raise
        if decision.notify:
            self._notify("allow", source, service, argument, final)
        return stream

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the policy lets a qube make a call; a broken policy lets nothing, and nobody is asked."""
        found = decide_now(self._policy, self._actions.system_info(), source, service, argument, target)
        return isinstance(found, Allow) and _is_ours(service, found) is True

    async def _join(self, call: Call, arg: str | None, decision: Allow) -> tuple[socket.socket, str | None]:
        service, final = call.service, decision.target
        is_ours = _is_ours(service, decision)
        if is_ours is False:
            raise CallRefusedError(f"{decision.rule.place} allows all services, not this one of the host", "policy")
        if is_ours or final in ("@adminvm", "dom0"):
            ours, theirs = socket.socketpair()
            # A rule that sends a call about a qube to this host leaves what it is about; one that names another qube
            # replaces that.
            about = call.target if final in ("@adminvm", "dom0") else final
            with ours:
                try:
                    await self._actions.run_on_host(ours, call.source, service, call.argument, about)
                except BaseException:
                    theirs.close()
                    raise
            return theirs, None
        disposable: str | None = None
        if final.startswith(DISPOSABLE):
            final = disposable = await self._new_disposable(final.removeprefix(DISPOSABLE))
        try:
            if not self._actions.is_running(final):
                if not decision.autostart and disposable is None:
                    raise CallRefusedError(f"{final} does not run and the rule says autostart=no", "policy")
                await self._start(final)
            self._calls.step(call, "started", final=final)
            if decision.call is not None:
                service, arg = decision.call
            command = Command(decision.user or "DEFAULT", service, arg, call.source)
            return await self._connect(final, exec_message(command.cmdline())), disposable
        except BaseException:
            if disposable is not None:
                await self._actions.remove_disposable(disposable)
            raise

    async def _start(self, name: str) -> None:
        """Start a qube. It goes on when the caller goes away: others may wait for the same qube."""
        try:
            await asyncio.shield(self._task(_start(self._actions, name)))
        except CasemateError as error:
            raise CallRefusedError(f"{name} cannot be started: {error}", "start failed") from error

    async def _new_disposable(self, template: str) -> str:
        making = self._task(_make(self._actions, template))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # It is not known yet by what name it will have to be removed.
            self._task(_unmake(self._actions, making))
            raise
        except CasemateError as error:
            raise CallRefusedError(f"no disposable of {template}: {error}", "start failed") from error

    async def _connect(self, name: str, message: bytes) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stream, str(self._settings.link_socket(qube_name(name))))
            await loop.sock_sendall(stream, message)
        except OSError as error:
            stream.close()
            raise CallRefusedError(f"{name} cannot be reached: {error.strerror}", "unreachable") from None
        except BaseException:
            stream.close()
            raise
        return stream


async def _start(actions: Actions, name: str) -> None:
    await actions.start(name)


async def _make(actions: Actions, template: str) -> str:
    return await actions.create_disposable(template)


async def _unmake(actions: Actions, making: asyncio.Task[str]) -> None:
    try:
        name = await making
    except CasemateError:
        return
    await actions.remove_disposable(name)
