"""Admin API calls that qubes make through qrexec.

::

    qube ── link ── broker: policy allows ──> GuestCalls.serve ──> _GuestCall ──> dispatch.py ──> handler

The broker hands the stream over after the policy has decided. What can be checked without the payload is checked first:
a method or a target that does not exist, or an argument where none belongs, is refused exactly as the policy refuses,
so that a refusal never tells why. Then standard input up to its end is the payload, and the reply goes to standard
output. What a qube says of itself (``qubes.FeaturesRequest`` and the like) is answered by the exit status, 0 or 1, and
the time (``qubes.GetDate``) by a line of text; no cause of a failure goes to the qube.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, cast

from casemate.api import dispatch
from casemate.api.context import Context
from casemate.api.events import Subscription
from casemate.api.method import Access, Method
from casemate.api.methods import METHODS, MISC
from casemate.wire.admin import ADMIN, MAX_ARGUMENT, Request, endpoint, most_bytes, success
from casemate.wire.call_data import ServiceSide
from casemate.wire.clock import SERVICE as DATE
from casemate.wire.errors import CallRefusedError, CasemateError, ProtocolError
from casemate.wire.qrexec import DATA_STDIN, DATA_STDOUT, requested_target

REQUEST_SECONDS = 30.0
"""Seconds in which the payload has to be complete."""
CALLS_OF_ONE_QUBE = 32
"""Limit of the Admin API: running API calls of one qube."""
NEWS_BURST = 10.0
"""Limit of what a qube says of itself (times): times at once."""
NEWS_PER_MINUTE = 10.0
"""Limit of what a qube says of itself (times a minute): times in the long run. Each time the store is written."""


_DONE = success(b"")
"""How a reply begins that reports no error (Admin API)."""


class GuestCalls:
    """Serves calls of qubes; made by the daemon, lives as long as it does."""

    def __init__(self, context: Context, *, request_seconds: float = REQUEST_SECONDS) -> None:
        self.context = context
        self.request_seconds = request_seconds
        self._busy: dict[str, int] = {}
        self._news: dict[str, tuple[float, float]] = {}
        """A token bucket for each qube: how often it may still tell something, and when that was computed."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, stream: socket.socket, source: str, service: str, argument: str, target: str) -> None:
        """Serve a call that the policy allows, on a copy of its stream; CallRefusedError if it can never work."""
        request = self._request(source, service, argument, target)
        try:
            method = self._known(request)
            self.context.store.snapshot().domains.find(request.dest)
        except CasemateError as error:
            raise CallRefusedError(f"{service}+{argument}: {error}") from None
        if self._busy.get(source, 0) >= CALLS_OF_ONE_QUBE:
            raise CallRefusedError(f"{source} has {CALLS_OF_ONE_QUBE} calls under way already", "busy")
        if service in MISC and not self._may_tell(source):
            raise CallRefusedError(f"{service}: {source} tells too much about itself")
        own = stream.dup()
        own.setblocking(False)
        self._busy[source] = self._busy.get(source, 0) + 1
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: _GuestCall(self, method, request), sock=own)

    def _may_tell(self, source: str) -> bool:
        now = time.monotonic()
        left, at = self._news.get(source, (NEWS_BURST, now))
        left = min(NEWS_BURST, left + (now - at) * NEWS_PER_MINUTE / 60)
        self._news[source] = (max(left - 1, 0.0) if left >= 1 else left, now)
        return left >= 1

    @staticmethod
    def _known(request: Request) -> Method:
        """The method, if the call is well formed as far as one can tell without its payload."""
        method = METHODS.get(request.method) or MISC.get(request.method)
        if method is None:
            raise ProtocolError("no such method")
        method.check(request._replace(payload=b"x" if method.wants("payload") else b""))
        return method

    @staticmethod
    def _request(source: str, service: str, argument: str, target: str) -> Request:
        try:
            asked = requested_target(target)
            # The time is nobody's in particular: who wants it names no qube, or any.
            if asked == "@adminvm" or service == DATE:
                asked = ADMIN
            if asked.startswith("@") or len(argument) > MAX_ARGUMENT:
                raise ProtocolError("no call of the Admin API has such a target or argument")
            return Request(service, argument, source, endpoint(asked, "destination"), b"")
        except CasemateError as error:
            raise CallRefusedError(f"{service}+{argument}: {error}") from None

    def run(self, work: Any) -> None:
        """Carry out a call in the background."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def ended(self, source: str) -> None:
        """A call of a qube is over."""
        left = self._busy.get(source, 1) - 1
        if left:
            self._busy[source] = left
        else:
            self._busy.pop(source, None)


class _GuestCall(asyncio.Protocol):
    """One call: payload in, reply or events out, as the data phase of a qrexec call."""

    def __init__(self, calls: GuestCalls, method: Method, request: Request) -> None:
        self._calls = calls
        self._method = method
        self._request = request
        self._side = ServiceSide()
        self._payload = bytearray()
        # On the host's own socket the header counts too; a call must not be allowed here and too long there.
        header = len(f"{request.method}+{request.arg} {request.source} name {request.dest}") + 1
        self._most = most_bytes(f"{request.method}+".encode()) - header
        self._complete = False
        self._over = False
        self._subscription: Subscription | None = None
        self._discard: Callable[[Subscription], None]
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock."""
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = asyncio.get_running_loop().call_later(self._calls.request_seconds, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Collect the payload; its end starts the call."""
        try:
            for kind, view in self._side.feed(data):
                if kind != DATA_STDIN or self._over:
                    continue
                if view:
                    if not self._complete:
                        self._payload += view
                elif not self._complete:
                    self._complete = True
                    self._go()
        except ProtocolError:
            self._transport.abort()
            return
        if len(self._payload) > self._most:
            self._payload.clear()
            self._complete = True
            self._fail(ProtocolError(f"The call is longer than {self._most} bytes"))

    def eof_received(self) -> bool:
        """The caller is gone. A call whose payload is not complete is not carried out."""
        return False

    def _go(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if len(self._payload) > self._most:
            return
        request = self._request._replace(payload=bytes(self._payload))
        context = self._calls.context
        try:
            self._method.check(request)
            if self._method.access is Access.STREAM:
                self._subscription, self._discard = dispatch.subscribe(context, self._method, request, _Framed(self))
                return
        except Exception as error:
            self._answer(dispatch.reply_to(error, request))
            return
        if self._method.access is Access.READ:
            self._answer(dispatch.read(context, self._method, request))
        else:
            self._calls.run(self._execute(request))

    async def _execute(self, request: Request) -> None:
        self._answer(await dispatch.execute(self._calls.context, self._method, request))

    def _too_slow(self) -> None:
        self._fail(ProtocolError(f"The call was not complete within {self._calls.request_seconds:g} s"))

    def _fail(self, error: CasemateError) -> None:
        self._answer(dispatch.reply_to(error, self._request))

    def _answer(self, reply: bytes) -> None:
        """Send a reply and end the call. The exit status is 0, because an error is in the reply."""
        if self._over or self._transport.is_closing():
            return
        if self._request.method in MISC:
            done = reply.startswith(_DONE)
            if done and len(reply) > len(_DONE):
                self.write(reply[len(_DONE) :])
            self.finish(0 if done else 1)
            return
        self.write(reply)
        self.finish()

    def write(self, data: bytes) -> None:
        """Send standard output."""
        for part in self._side.output(DATA_STDOUT, data):
            self._transport.write(part)

    def finish(self, status: int = 0) -> None:
        """Say that the call is over."""
        if self._over:
            return
        self._over = True
        for part in self._side.exit(status):
            self._transport.write(part)
        self._transport.close()
        self._deadline = asyncio.get_running_loop().call_later(self._calls.request_seconds, self._transport.abort)

    def abort(self) -> None:
        """End the call at once."""
        self._over = True
        self._transport.abort()

    def socket(self) -> Any:
        """The stream's socket."""
        return self._transport.get_extra_info("socket")

    def pause_writing(self) -> None:
        """The stream is full."""
        if self._subscription is not None:
            self._subscription.pause()

    def resume_writing(self) -> None:
        """The stream takes more."""
        if self._subscription is not None:
            self._subscription.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The call is over. What it asked for goes on."""
        self._over = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._subscription is not None:
            self._discard(self._subscription)
        self._calls.ended(self._request.source)


class _Framed:
    """A `FrameSink` that sends its frames as standard output of a qrexec call."""

    def __init__(self, call: _GuestCall) -> None:
        self._call = call

    def write(self, data: bytes) -> None:
        """Send a frame of events."""
        self._call.write(data)

    def close(self) -> None:
        """End the stream in order."""
        self._call.finish()

    def abort(self) -> None:
        """End the stream at once."""
        self._call.abort()

    def get_extra_info(self, name: str) -> Any:
        """The socket, to see whether its other end is gone."""
        return self._call.socket() if name == "socket" else None
