"""Calls that the qube asks for: each is checked, put before the broker, and joined to its target when it is allowed."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque

from casemate.streams.join import join
from casemate.streams.loop import READ, Loop
from casemate.streams.mux_stream import MuxStream
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import Handler
from casemate.wire.call_data import exit_code
from casemate.wire.errors import CasemateError, ProtocolError
from casemate.wire.qrexec import GUEST_REQUESTS, HEADER, parse_trigger4, service_connect, service_refused, trigger_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CALLS_PER_SECOND = 50.0
"""Limit of calls (a second): calls that a qube may ask for in the long run."""
CALL_BURST = 200.0
"""Limit of calls: calls that a qube may ask for at once. More wait, as many as there are streams of the channel."""
_TOLD_SECONDS = 60.0
"""How often the log says that calls wait."""
BROKER_SECONDS = 180.0
"""Limit of calls (seconds): time for a decision, with the start of the target."""
MAX_ANSWER = 4096
"""Bytes of the broker's answer; it is a line of JSON."""
_EXIT_MESSAGE = 12
"""Bytes of the message with a call's exit code, the last of a call."""


class GuestCalls:
    """All calls that the qube asks for. Made by the link for all of its life.

    ``broker`` is the path of the qube's own call socket, where the broker listens: it knows the qube by the socket.
    """

    def __init__(self, loop: Loop, broker: str, log: Callable[[str], None]) -> None:
        self.loop = loop
        self.broker = broker
        self.log = log
        self._tokens = CALL_BURST
        self._tokens_at = time.monotonic()
        self._waiting: deque[_Waiting] = deque()  # bounded by the streams that a guest may have open (mux.MAX_STREAMS)
        self._due = False
        self._told_at = -_TOLD_SECONDS

    def asked(self, stream: MuxStream, body: bytes) -> None:
        """The qube has opened a stream for a call; ProtocolError when it is not even a request."""
        if len(body) < HEADER.size:
            raise ProtocolError("short request for a call")
        kind, length = HEADER.unpack_from(body)
        if GUEST_REQUESTS((kind, length)) != len(body) - HEADER.size:
            raise ProtocolError("request for a call is cut or too long")
        raw = body[HEADER.size :]
        ident = trigger_ident(raw)
        try:
            trigger = parse_trigger4(raw)
        except CasemateError as error:
            self.log(f"refused: {error}")
            _refuse(stream, ident)
            return
        self._waiting.append(_Waiting(self._waiting, stream, ident, trigger.call, trigger.target))
        self._next()

    def _next(self) -> None:
        """Put before the broker what may be put now. A flood is slowed down and not refused: a qube may have good
        reasons for many calls at once, and cannot tell which of them were refused for their number alone."""
        while self._waiting:
            if not self._take_token():
                if not self._due:
                    self._due = True
                    self.loop.later(1 / CALLS_PER_SECOND, self._again)
                    self._tell()
                return
            one = self._waiting.popleft()
            Request(self, one.stream, one.ident, one.call, one.target)

    def _again(self) -> None:
        self._due = False
        self._next()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= _TOLD_SECONDS:
            self._told_at = now
            self.log(f"calls wait: more than {CALL_BURST:.0f} at once, then {CALLS_PER_SECOND:.0f} a second")

    def _take_token(self) -> bool:
        now = time.monotonic()
        self._tokens = min(CALL_BURST, self._tokens + (now - self._tokens_at) * CALLS_PER_SECOND)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Waiting(Handler):
    """A request whose turn has not come. It leaves the queue with its stream: streams bound what waits."""

    __slots__ = ("_queue", "call", "ident", "stream", "target")

    def __init__(self, queue: deque[_Waiting], stream: MuxStream, ident: bytes, call: str, target: str) -> None:
        self._queue = queue
        self.stream = stream
        self.ident = ident
        self.call = call
        self.target = target
        stream.handler = self

    def on_data(self, data: memoryview) -> None:
        # Nothing belongs here before the answer.
        self.stream.abort()
        self._queue.remove(self)

    def on_abort(self, why: str) -> None:
        self._queue.remove(self)


class Request(Handler):
    """One request, until the broker has decided and then until the call has ended. Owns the broker's connection."""

    def __init__(self, calls: GuestCalls, stream: MuxStream, ident: bytes, call: str, target: str) -> None:
        self._loop = calls.loop
        self._stream = stream
        self._ident = ident
        self._answer = b""
        self._fds: list[int] = []
        self._decided = False
        self._tail = b""
        stream.handler = self
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._deadline = calls.loop.later(BROKER_SECONDS, self._refuse)
        try:
            self._sock.connect(calls.broker)
            self._sock.send(json.dumps({"service": call, "target": target}).encode() + b"\n")
        except OSError as error:
            calls.log(f"the broker cannot be reached: {error.strerror}")
            self._refuse()
            return
        calls.loop.watch(self._sock.fileno(), READ, self._ready)

    def _ready(self, _mask: int) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._sock, MAX_ANSWER, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds += fds
        self._answer += data
        if data and not self._answer.endswith(b"\n") and len(self._answer) < MAX_ANSWER:
            return
        if not self._fds or not self._answer.startswith(b'{"result": "allow"'):
            self._refuse()
            return
        self._decided = True
        self._deadline.cancel()
        self._loop.unwatch(self._sock.fileno())
        self._stream.write(service_connect(self._ident))
        target = SocketStream(self._loop, socket.socket(fileno=self._fds.pop(0)))
        join(target, self._stream, self._ended, self._passing)

    def _passing(self, data: memoryview) -> None:
        """Keep the last bytes of the service: of a call that ended in order, its exit code."""
        size = len(data)
        self._tail = bytes(data[-_EXIT_MESSAGE:]) if size >= _EXIT_MESSAGE else (self._tail + data)[-_EXIT_MESSAGE:]

    def _ended(self, _why: str) -> None:
        """Let go of the broker, and tell it how the call went where that is known."""
        code = exit_code(self._tail)
        if code is not None:
            try:
                self._sock.send(b"exit %d\n" % code)
            except OSError:
                pass
        self._sock.close()

    def _refuse(self) -> None:
        if not self._decided:
            self._decided = True
            _refuse(self._stream, self._ident)
            self._close()

    def _close(self) -> None:
        self._decided = True
        self._deadline.cancel()
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        for fd in self._fds:
            os.close(fd)

    def on_data(self, data: memoryview) -> None:
        # Nothing belongs here before the answer.
        if not self._decided:
            self._stream.abort()
            self._close()

    def on_abort(self, why: str) -> None:
        if not self._decided:
            self._close()


def _refuse(stream: MuxStream, ident: bytes) -> None:
    stream.write(service_refused(ident))
    stream.eof()
