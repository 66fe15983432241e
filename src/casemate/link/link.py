"""The channel of one running qube: its sessions, its violations, and who serves each stream that the qube opens."""

from __future__ import annotations

import socket
import time

from casemate.link.console import Console
from casemate.link.guest_calls import GuestCalls
from casemate.link.log import Log
from casemate.link.requests import SILENT_SECONDS, HostRequests
from casemate.qdb.mirror import HostMirror
from casemate.qdb.server import DatabaseServer, SessionStream
from casemate.qdb.session import Database
from casemate.streams.channel import Channel
from casemate.streams.half_frame import HALF_FRAME_SECONDS
from casemate.streams.listener import listen
from casemate.streams.loop import Loop
from casemate.streams.mux_stream import MuxStream
from casemate.streams.stream import Handler
from casemate.wire.errors import ProtocolError, printable
from casemate.wire.link import CALL, DATABASE, POWER, READY, TIME_KEY, parse_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_VIOLATIONS = 5
"""Limit of a qube's channel: violations of the protocol per run of a qube; then the channel stays closed until it
restarts."""
LINGER_SECONDS = 30.0
"""How long a link outlives its machine; casemated ends it sooner."""
MAX_READY = 4096
"""Bytes of what an agent says of itself."""
_AGAIN_SECONDS = 0.2
"""Pause before the channel is opened again after a violation; doubled with each."""


class Link:
    """Holds the channel of one qube and makes the parts that use it. One per process, made by ``main``.

    It owns the facts of the session (``channel``, ``agent``, ``closed_why``, ``violations``), which ``HostRequests``
    reads. ``GuestCalls`` owns what the qube asks for, ``Console`` the console, ``Database`` the qube's QubesDB.
    """

    def __init__(
        self,
        name: str,
        directory: str,
        database: dict[str, str],
        half_frame_seconds: float = HALF_FRAME_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self.loop = Loop()
        self.channel: Channel | None = None
        self.agent: dict[str, Any] | None = None
        self.closed_why = ""
        self.violations = 0
        self._directory = directory
        self._half_frame_seconds = half_frame_seconds
        self._log = Log(name)
        self._sock: socket.socket | None = None
        self._mirrored = False
        self._waiting: list[Callable[[], None]] = []
        self._database = Database()
        for key, value in database.items():
            self._database.write(key, value.encode())
        self._console = Console(self.loop, self._path("console.sock"), self._linger)
        self._guest_calls = GuestCalls(self.loop, self._path("broker.sock"), self._log)
        listening = listen(self._path("link.sock"), 0o600)
        self._requests = HostRequests(self.loop, listening, self, self._console, self._log, silent_seconds)
        DatabaseServer(self.loop, listen(self._path("qubesdb.sock"), 0o600), self._database)

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    # -- sessions

    def connect(self) -> None:
        """Connect to the qube's port and begin a session."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path("channel.sock"))
        except OSError as error:
            sock.close()
            self._end(f"the qube's port is gone: {error.strerror}")
            self._linger()
            return
        sock.setblocking(False)
        self._sock = sock
        self.channel = Channel(
            self.loop, sock.fileno(), True, self._opened, self._session, self._lost,
            half_frame_seconds=self._half_frame_seconds,
        )  # fmt: skip
        self.channel.reset()

    def when_ready(self, action: Callable[[], None]) -> None:
        """Call ``action`` when there is a session, or when there will be none any more."""
        if self.agent is not None or self.closed_why:
            action()
        else:
            self._waiting.append(action)

    def power_off(self) -> bool:
        """Ask the agent to power its machine off; False when there is no agent."""
        if self.channel is None or self.agent is None:
            return False
        self.channel.open(POWER + b"off", Handler())
        return True

    def _session(self) -> None:
        self._log("the agent answers")
        self._database.write(TIME_KEY, f"{time.time():.3f}".encode())
        self.agent = None
        self._mirrored = False

    def _lost(self, why: str) -> None:
        """The machine has ended, or the qube broke the protocol: that concerns nobody else."""
        channel, sock = self.channel, self._sock
        self.channel = self._sock = None
        self.agent = None
        self._requests.calls.use(None)
        if sock is not None:
            sock.close()
        if channel is None or not channel.violation:
            self._end("the machine has ended")
            self._linger()
            return
        self.violations += 1
        self._log(f"channel closed ({self.violations} of {MAX_VIOLATIONS}): {why}")
        if self.violations >= MAX_VIOLATIONS:
            self._end("the qube broke the protocol too often; start it anew")
        else:
            self.loop.later(_AGAIN_SECONDS * 2**self.violations, self.connect)

    def _linger(self) -> None:
        """Go on for a while: somebody may still want to know what the console said last."""
        self.loop.later(LINGER_SECONDS, self.loop.stop)

    def _end(self, why: str) -> None:
        self.closed_why = why
        self._log(why)
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()

    # -- streams that the qube opens

    def _opened(self, stream: MuxStream, payload: bytes) -> None:
        channel = self.channel
        assert channel is not None
        kind, body = payload[:1], payload[1:]
        try:
            if kind == CALL:
                self._guest_calls.asked(stream, body)
            elif kind == DATABASE and not self._mirrored:
                self._mirrored = True
                mirror = HostMirror(self._database)
                SessionStream(self.loop, stream, mirror, lambda why: channel.fail(f"database: {why}") if why else None)
            elif kind == READY and self.agent is None and len(body) <= MAX_READY:
                self.agent = parse_object(body, "ready")
                stream.abort()
                self._tell_waiting()
            else:
                raise ProtocolError(f"stream for {printable(repr(kind))}")
        except ProtocolError as error:
            channel.fail(str(error))
