"""The link's own socket: calls of this host into the qube, and what the daemon asks of the link."""

from __future__ import annotations

import socket
import time

from casemate.calls.queue import CallQueue
from casemate.link.console import Console
from casemate.link.freezing import Freezing
from casemate.link.liveness import Liveness, reason
from casemate.streams.listener import FirstMessage, Listener
from casemate.streams.loop import Loop
from casemate.wire.errors import ProtocolError
from casemate.wire.link import CALL, CONTROL, MAX_CONTROL, control_message, parse_object
from casemate.wire.qrexec import HOST_REQUESTS, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from casemate.streams.channel import Channel
    from casemate.streams.mux_stream import MuxStream
    from casemate.streams.socket_stream import SocketStream
else:
    Protocol = object

PATIENCE_SECONDS = 10.0
"""How long a call of the host waits for the channel's next session."""
SILENT_SECONDS = 30.0
"""Limit of calls (seconds): time that a qube's agent does not answer, after which calls end that have brought it
nothing yet. Others wait on: what they have brought would be lost."""
_LOOK_SECONDS = 2.0
"""How often is looked at calls that nothing has come of."""
_NOTHING = 8
"""Bytes of a call that are nothing yet: the message that says that it has no input."""
READY_SECONDS = 60.0
"""How long "ready" waits for the agent where the request does not say."""
CONSOLE_TOLD = 20000
"""Bytes of the console in an answer."""


class Session(Protocol):
    """What these requests need to know of the channel. The link gives it; see ``link.Link``."""

    channel: Channel | None
    agent: dict[str, Any] | None
    """What the agent said when it became ready; None while there is no session."""
    closed_why: str
    """Why there will be no session any more, or ""."""
    violations: int

    def when_ready(self, action: Callable[[], None]) -> None:
        """Call ``action`` when there is a session, or when there will be none any more."""

    def power_off(self) -> bool:
        """Ask the agent to power its machine off; False when there is no agent."""


class HostRequests:
    """Serves ``link.sock``. Made by the link for all of its life."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        session: Session,
        console: Console,
        log: Callable[[str], None],
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._loop = loop
        self._session = session
        self._console = console
        self._log = log
        self.calls = CallQueue(loop, self._joined)
        self._silent_seconds = silent_seconds
        self._liveness = Liveness(loop)
        self._unheard: dict[MuxStream, tuple[float, SocketStream]] = {}
        """Calls that nothing has come of yet: when they began, and the caller's end."""
        self._looking = False
        Listener(loop, sock, lambda connection: self._connected(connection))

    def _connected(self, sock: socket.socket) -> None:
        FirstMessage(self._loop, sock, _lengths, self._requested)

    def _requested(self, sock: socket.socket, kind: int, body: bytes) -> None:
        if kind == CONTROL:
            try:
                self._control(sock, parse_object(body, "control message"))
            except ProtocolError as error:
                self._log(str(error))
                sock.close()
            return
        session = self._session
        if session.agent is None and not session.closed_why:
            # Between two sessions: a link that was killed comes back within a moment, so its calls wait for that.
            self._within(PATIENCE_SECONDS, lambda: self._requested(sock, kind, body), sock.close)
            return
        self.calls.use(session.channel if session.agent is not None else None)
        self.calls.add(CALL + message(kind, body), sock)

    # -- calls that the agent does not answer

    def _joined(self, caller: SocketStream, stream: MuxStream) -> None:
        self._unheard[stream] = (time.monotonic(), caller)
        if not self._looking:
            self._looking = True
            self._loop.later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Forget calls that something has come of; ask the agent for a sign of life where there are others, and end
        those that it has not answered for too long."""
        channel, now = self._session.channel, time.monotonic()
        silent = self._liveness.silent
        for stream, (began, caller) in list(self._unheard.items()):
            if stream.closed or channel is None or channel.mux.heard(stream.number):
                del self._unheard[stream]
            elif min(silent, now - began) >= self._silent_seconds and stream.sent <= _NOTHING:
                self._log(f"a call ends: the agent has not answered for {silent:.0f} seconds")
                del self._unheard[stream]
                stream.abort()
                caller.abort()
        if self._unheard and channel is not None and self._session.agent is not None:
            self._liveness.ask(channel)
        self._looking = bool(self._unheard)
        if self._looking:
            self._loop.later(_LOOK_SECONDS, self._look)

    def _tell_alive(self, sock: socket.socket, within: float) -> None:
        """Answer whether the agent answers, within so many seconds."""
        session = self._session
        if session.channel is None or session.agent is None:
            why = session.closed_why or "its agent has not said that it is ready"
            _reply(sock, {"answers": False, "silent": 0.0, "why": why})
            return
        told = False

        def tell(answers: bool) -> None:
            nonlocal told
            if not told:
                told = True
                timer.cancel()
                why = "" if answers else reason(self._console.text().encode("latin-1"))
                _reply(sock, {"answers": answers, "silent": round(self._liveness.silent, 1), "why": why})

        timer = self._loop.later(within, lambda: tell(False))
        self._liveness.ask(session.channel, lambda: tell(True))

    def _within(self, seconds: float, ready: Callable[[], None], late: Callable[[], None]) -> None:
        """Call ``ready`` when there is a session (or will be none any more), else ``late`` after ``seconds``."""
        over = False

        def once(action: Callable[[], None]) -> None:
            nonlocal over
            if not over:
                over = True
                timer.cancel()
                action()

        timer = self._loop.later(seconds, lambda: once(late))
        self._session.when_ready(lambda: once(ready))

    def _control(self, sock: socket.socket, request: dict[str, Any]) -> None:
        session = self._session
        operation = request.get("op")
        if operation == "ready":
            within = float(request.get("within", READY_SECONDS))
            answer = lambda: self._tell_ready(sock, within)
            self._within(within, answer, answer)
        elif operation == "console":
            _reply(sock, {"text": self._console.text()[-CONSOLE_TOLD:]})
        elif operation == "terminal":
            try:
                _reply(sock, {"path": self._console.terminal()})
            except OSError as error:
                _reply(sock, {"why": error.strerror or "no terminal can be made"})
        elif operation == "answers":
            self._tell_alive(sock, min(float(request.get("within", 1.0)), _LOOK_SECONDS))
        elif operation == "freeze":
            self._freeze(sock, bool(request.get("on")))
        elif operation == "poweroff":
            if session.power_off():
                _reply(sock, {"asked": True})
            else:
                sock.close()
        elif operation == "status":
            state = {"ready": session.agent is not None, "strikes": session.violations, "why": session.closed_why}
            _reply(sock, state)
        else:
            raise ProtocolError("unknown control message")

    def _freeze(self, sock: socket.socket, on: bool) -> None:
        """Have the agent stop all other programs of the guest, or let them go on; answer whether it has."""
        session = self._session
        if session.channel is None or session.agent is None:
            _reply(sock, {"done": False, "why": session.closed_why or "its agent has not said that it is ready"})
        else:
            Freezing(self._loop, session.channel, on, lambda done, why: _reply(sock, {"done": done, "why": why}))

    def _tell_ready(self, sock: socket.socket, within: float) -> None:
        session = self._session
        if session.agent is not None:
            _reply(sock, {"ready": True, "agent": session.agent})
        else:
            why = session.closed_why or f"its agent did not answer within {within:g} seconds"
            _reply(sock, {"ready": False, "why": why})


def _reply(sock: socket.socket, answer: dict[str, Any]) -> None:
    try:
        sock.setblocking(True)
        sock.settimeout(2)
        sock.sendall(control_message(answer))
    except OSError:
        pass
    sock.close()


def _lengths(fields: tuple[int, int]) -> int:
    if fields[0] == CONTROL:
        if fields[1] > MAX_CONTROL:
            raise ProtocolError("control message too long")
        return fields[1]
    return HOST_REQUESTS(fields)
