"""Decides about calls that qubes make and joins the two ends. It is not in the data path.

A request comes from the call listener with its connection. The answer is one line of JSON; with ``{"result":
"allow"}`` comes a descriptor, the other end's call stream. The link keeps the connection until the call ends, so that
a disposable made for the call can be removed then. Before it closes the connection it may write ``exit STATUS``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from casemate.qrexec.calls import Call, Calls
from casemate.qrexec.decide import Asker, Question, decide, is_api_call
from casemate.qrexec.evaluate import NOT_CHOSEN, Allow, Deny, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.listener import DENY, CallListener, CallRequest, answer
from casemate.qrexec.rate import Rate
from casemate.settings import Settings
from casemate.wire.errors import CallRefusedError, CasemateError
from casemate.wire.names import qube_name
from casemate.wire.qrexec import Command, exec_message

log = logging.getLogger(__name__)

SETUP_SECONDS = 170.0
"""Limit of calls (seconds): time from request to connection, with a question to the user and the start of the target. A
link waits a little longer, so that this error comes first."""
SILENCE_SECONDS = 2.0
"""Seconds after which the target of a call that goes on is asked for a sign of life, once."""
CALLS_PER_SECOND, CALL_BURST = 100.0, 400.0
"""Calls that one link may ask for: per second, and at once. A link limits its qube to half of this, so only a link that
was taken over gets here."""
T = TypeVar("T")
DISPOSABLE = "@dispvm:"


class Power(Protocol):
    """Starts qubes and knows which run."""

    def is_running(self, name: str) -> bool:
        """Whether a qube runs, so that its link can be reached."""

    async def start(self, name: str) -> None:
        """Start a qube and wait until its agent answers."""


class Disposables(Protocol):
    """Makes and ends the disposables that calls run in."""

    async def create(self, template: str) -> str:
        """Make a halted disposable of a template; its name."""

    async def end(self, name: str) -> None:
        """Kill and remove it; nothing to do when it is gone."""


RunOnHost = Callable[[socket.socket, str, str, str, str], Awaitable[None]]
"""Runs a service of this host on a call stream: (socket, source, service, argument, requested target). The socket
stays the broker's to close. CallRefusedError when there is no such service."""


async def _nobody(question: Question) -> str:
    raise CallRefusedError("there is nobody to ask", NOT_CHOSEN)


class Broker:
    """Serves the requests of all running qubes."""

    def __init__(
        self,
        settings: Settings,
        listener: CallListener,
        policy: PolicyFiles,
        info: Callable[[], SystemInfo],
        power: Power,
        disposables: Disposables,
        run_on_host: RunOnHost,
        asker: Asker = _nobody,
        calls: Calls | None = None,
        notify: Callable[[str, str, str, str, str], None] = lambda *_: None,
        silence: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._info = info
        self._power = power
        self._disposables = disposables
        self._run_on_host = run_on_host
        self._asker = asker
        self._calls = calls if calls is not None else Calls()
        self._notify = notify
        self._silence = silence
        """What is known of a running qube that gives no sign of life; empty where it answers."""
        self._tasks: set[asyncio.Future[Any]] = set()
        self._rate = Rate(CALLS_PER_SECOND, CALL_BURST)
        listener.serve(self._serve)

    async def close(self) -> None:
        """Give up what is being set up; calls under way go on without us. The listener is closed before."""
        for task in list(self._tasks):
            task.cancel()

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start work that goes on even if its caller is cancelled. The broker keeps it from being garbage collected."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, connection: socket.socket, request: CallRequest) -> None:
        about = (request.source, request.service, request.argument or "", request.target)
        if request.refused or not self._rate.allows(request.source):
            answer(connection, DENY)
            self._calls.not_begun(*about, "rate", "the qube asks too often")
            return
        try:
            call = self._calls.begin(*about)
        except CallRefusedError:
            answer(connection, DENY)
            return
        status: int | None = None
        try:
            status = await self._live(connection, call, request.argument)
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
            looking = asyncio.get_running_loop().call_later(SILENCE_SECONDS, self._look, call)
            try:
                return await self._until_end(connection)
            finally:
                looking.cancel()
        except CallRefusedError as refusal:
            self._refuse(connection, call, refusal.cause, str(refusal))
        except CasemateError as error:
            self._refuse(connection, call, "failed", str(error))
        except OSError as error:
            self._refuse(connection, call, "gone", str(error))
        except Exception:
            log.exception("%s failed", call)
            self._refuse(connection, call, "fault", "a bug; the log has the traceback")
        finally:
            if disposable is not None:
                await self._disposables.end(disposable)
        return None

    def _look(self, call: Call) -> None:
        """A call has lasted for a while: it may be at work, or its target may not answer at all."""
        if self._silence is not None and call.final and not call.final.startswith("@"):
            self._task(self._ask_target(call, self._silence))

    async def _ask_target(self, call: Call, silence: Callable[[str], Awaitable[str]]) -> None:
        why = await silence(call.final)
        if why:
            self._calls.silent(call, f"{call.final} does not answer: {why}")

    def _refuse(self, connection: socket.socket, call: Call, cause: str, why: str) -> None:
        self._calls.refused(call, cause, why)
        answer(connection, DENY)

    async def _before_deadline(self, connection: socket.socket, work: Coroutine[Any, Any, T]) -> T:
        """The result of setting a call up, unless that takes too long or the caller goes away before."""
        # A link writes nothing between request and answer. So readable means that it has closed the connection.
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
        """Wait until the link closes the connection; the exit status, if it wrote one before."""
        loop, told = asyncio.get_running_loop(), b""
        while data := await loop.sock_recv(connection, 4096):
            told = (told + data)[-64:]
        words = told.split()
        return int(words[1]) if len(words) == 2 and words[0] == b"exit" and words[1].isdigit() else None

    async def _set_up(self, call: Call, arg: str | None) -> tuple[socket.socket, str | None]:
        source, service, argument, target = call.source, call.service, call.argument, call.target

        async def ask(question: Question) -> str:
            self._calls.step(call, "asking")
            return await self._asker(question)

        decision = await decide(self._policy, self._info, ask, source, service, argument, target)
        if isinstance(decision, Deny):
            if decision.notify:
                self._notify("deny", source, service, argument, target)
            raise CallRefusedError(decision.reason, decision.cause)
        final = decision.remote or decision.target
        self._calls.step(call, "decided", why=f"allowed by {decision.rule.location}", final=final)
        try:
            stream = await self._join(call, arg, decision)
        except CasemateError:
            if decision.notify:
                self._notify("fail", source, service, argument, final)
            raise
        if decision.notify:
            self._notify("allow", source, service, argument, final)
        return stream

    async def _join(self, call: Call, arg: str | None, decision: Allow) -> tuple[socket.socket, str | None]:
        service, final = call.service, decision.target
        is_ours = is_api_call(service, decision)
        if is_ours is False:
            raise CallRefusedError(f"{decision.rule.location} allows all services, not this one of the host", "policy")
        if is_ours or final in ("@adminvm", "dom0"):
            ours, theirs = socket.socketpair()
            # The target of an API call is the qube that the call is about. A rule that sends the call to this host
            # keeps it; a rule with target=OTHER replaces it.
            about = call.target if final in ("@adminvm", "dom0") else final
            with ours:
                try:
                    await self._run_on_host(ours, call.source, service, call.argument, about)
                except BaseException:
                    theirs.close()
                    raise
            return theirs, None
        disposable: str | None = None
        if final.startswith(DISPOSABLE):
            final = disposable = await self._new_disposable(final.removeprefix(DISPOSABLE))
        try:
            if not self._power.is_running(final):
                if not decision.autostart and disposable is None:
                    raise CallRefusedError(f"{final} does not run and the rule says autostart=no", "policy")
                await self._start(final)
            call.final = final
            self._calls.step(call, "started", final=final)
            if decision.call is not None:
                service, arg = decision.call
            command = Command(decision.user or "DEFAULT", service, arg, call.source)
            return await self._connect(final, exec_message(command.cmdline())), disposable
        except BaseException:
            if disposable is not None:
                await self._disposables.end(disposable)
            raise

    async def _start(self, name: str) -> None:
        """Start a qube. The start goes on if the caller goes away, because others may wait for the same qube."""
        try:
            await asyncio.shield(self._task(_start(self._power, name)))
        except CasemateError as error:
            raise CallRefusedError(f"{name} cannot be started: {error}", "start failed") from error

    async def _new_disposable(self, template: str) -> str:
        making = self._task(_make(self._disposables, template))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # The disposable has no name yet. Whoever finishes making it removes it.
            self._task(_unmake(self._disposables, making))
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


async def _start(power: Power, name: str) -> None:
    await power.start(name)


async def _make(disposables: Disposables, template: str) -> str:
    return await disposables.create(template)


async def _unmake(disposables: Disposables, making: asyncio.Task[str]) -> None:
    try:
        name = await making
    except CasemateError:
        return
    await disposables.end(name)
