"""One running qube's end of everything: its channel, its database, its calls, its console."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time

from casemate.calls.queue import Callers
from casemate.qdb.server import DatabaseServer, DatabaseStream
from casemate.qdb.session import Database, HostMirror
from casemate.streams.channel import Channel, Stream, StreamHandler
from casemate.streams.join import Splice
from casemate.streams.listener import FirstMessage, Listener, listen
from casemate.streams.loop import READ, WRITE, Loop
from casemate.wire.errors import CasemateError, ProtocolError, printable
from casemate.wire.link import CALL, CONTROL, DATABASE, MAX_CONTROL, POWER, READY, control_message, parse_object
from casemate.wire.qrexec import (
    GUEST_REQUESTS,
    HEADER,
    HOST_REQUESTS,
    exit_code,
    message,
    parse_trigger4,
    service_connect,
    service_refused,
    trigger_ident,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONSOLE_BYTES = 64 * 1024
"""Limit of a qube's channel (bytes): end of a qube's console output that is kept."""
CONSOLE_SHOWN = 3000
"""How much of it a new user of the console's terminal sees; less than a terminal keeps for a slow reader (4096)."""
STRIKES = 5
"""Limit of a qube's channel: violations of the protocol; then the channel stays closed until the qube restarts."""
CALLS_PER_SECOND = 50.0
"""Limit of calls (a second): calls that a qube may ask for in the long run."""
CALL_BURST = 200.0
"""Limit of calls: calls that a qube may ask for at once. More are refused."""
BROKER_SECONDS = 180.0
"""Limit of calls (seconds): time for a decision, with the start of the target."""
PATIENCE_SECONDS = 10.0
"""How long a call of the host waits for the channel's next session."""
LINGER_SECONDS = 30.0
"""How long a link outlives its machine; casemated ends it sooner."""
LOG_LINES_PER_SECOND = 20
"""Limit of a qube's channel (a second): lines that a link logs."""


class Log:
    """One line of printable text a fact, on stderr; a flood is cut and counted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._second = 0
        self._lines = 0

    def __call__(self, text: str) -> None:
        now = int(time.time())
        if now != self._second:
            if self._lines > LOG_LINES_PER_SECOND:
                self._write(f"suppressed {self._lines - LOG_LINES_PER_SECOND} lines")
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines <= LOG_LINES_PER_SECOND:
            self._write(printable(text))

    def _write(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        sys.stderr.write(f"{stamp} {self._name}: {text}\n")
        sys.stderr.flush()


class Console:
    """The qube's serial console: its last bytes, and a terminal of the host for who wants to use it."""

    def __init__(self, loop: Loop, path: str, on_end: Callable[[], None] = lambda: None) -> None:
        """``on_end`` is called when the machine has ended."""
        self._loop = loop
        self._tail = b""
        self._on_end = on_end
        self._to_guest = b""
        self._to_user = b""
        self._master = self._slave = -1
        self._sock: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            self._sock = None
            return
        self._sock.setblocking(False)
        loop.watch(self._sock.fileno(), READ, self._ready)

    def terminal(self) -> str:
        """The path of a terminal that is the console, made at first use; it begins with what was said last.

        It is for one user at a time: each that comes has what the one before had not read thrown away. Raises OSError.
        """
        import termios  # few links ever need it
        import tty

        if self._sock is None:
            raise OSError(errno.ENOTCONN, "the qube's console is closed")
        if self._master < 0:
            self._master, self._slave = os.openpty()
            # The guest's line discipline is the one that counts. Kept open here, or the terminal would hang up with
            # its first user.
            tty.setraw(self._slave)
            os.set_blocking(self._master, False)
            self._watch_master()
        termios.tcflush(self._slave, termios.TCIOFLUSH)
        self._to_user = self._tail[-CONSOLE_SHOWN:]
        self._pass_to_user()
        return os.ttyname(self._slave)

    def _ready(self, mask: int) -> None:
        if self._sock is None:
            return
        if mask & WRITE:
            self._pass_to_guest()
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._tail = (self._tail + data)[-CONSOLE_BYTES:]
            if self._master >= 0:
                # Where nobody reads, the oldest is lost, here as in the tail.
                self._to_user = (self._to_user + data)[-CONSOLE_BYTES:]
                self._pass_to_user()
        else:
            self._close()

    def _terminal_ready(self, mask: int) -> None:
        if mask & WRITE:
            self._pass_to_user()
        if mask & READ and not self._to_guest:
            try:
                self._to_guest = os.read(self._master, 4096)
            except OSError:
                return
            self._pass_to_guest()

    def _pass_to_user(self) -> None:
        try:
            self._to_user = self._to_user[os.write(self._master, self._to_user) :]
        except OSError:
            pass
        self._watch_master()

    def _pass_to_guest(self) -> None:
        if self._sock is None:
            return
        try:
            self._to_guest = self._to_guest[self._sock.send(self._to_guest) :]
        except OSError:
            pass
        self._loop.watch(self._sock.fileno(), READ | (WRITE if self._to_guest else 0), self._ready)
        self._watch_master()

    def _watch_master(self) -> None:
        if self._master >= 0:
            mask = (0 if self._to_guest else READ) | (WRITE if self._to_user else 0)
            self._loop.watch(self._master, mask, self._terminal_ready)

    def _close(self) -> None:
        """The machine has ended: who uses the terminal sees a hangup."""
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._on_end()
        if self._master >= 0:
            self._loop.forget(self._master)
            os.close(self._master)
            os.close(self._slave)
            self._master = self._slave = -1

    def text(self) -> str:
        """What is kept, one character a byte."""
        return self._tail.decode("latin-1")


class Asking(StreamHandler):
    """A call that the qube asks for, until the broker has decided."""

    def __init__(self, link: Link, stream: Stream, ident: bytes, call: str, target: str) -> None:
        self._link = link
        self._stream = stream
        self._ident = ident
        self._answer = b""
        self._fds: list[int] = []
        self._over = False
        stream.handler = self
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        try:
            self._sock.connect(link.path("broker.sock"))
            self._sock.send(json.dumps({"service": call, "target": target}).encode() + b"\n")
        except OSError as error:
            link.log(f"the broker cannot be reached: {error.strerror}")
            self._refuse()
            return
        link.loop.watch(self._sock.fileno(), READ, self._ready)
        link.loop.later(BROKER_SECONDS, self._refuse)

    def _ready(self, mask: int) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._sock, 4096, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds += fds
        self._answer += data
        if data and not self._answer.endswith(b"\n"):
            return
        if not self._fds or not self._answer.startswith(b'{"result": "allow"'):
            self._refuse()
            return
        self._over = True
        self._link.loop.forget(self._sock.fileno())
        self._stream.write(service_connect(self._ident))
        Splice(self._link.loop, socket.socket(fileno=self._fds[0]), self._stream, self._ended)

    def _ended(self, splice: Splice) -> None:
        """Let go of the broker, and tell it how the call went where that is known."""
        code = exit_code(splice.tail)
        if code is not None:
            try:
                self._sock.send(b"exit %d\n" % code)
            except OSError:
                pass
        self._sock.close()

    def _refuse(self) -> None:
        if self._over:
            return
        self._stream.write(service_refused(self._ident))
        self._stream.eof()
        self._close()

    def _close(self) -> None:
        self._over = True
        self._link.loop.forget(self._sock.fileno())
        self._sock.close()
        for fd in self._fds:
            os.close(fd)

    def on_data(self, data: bytes | memoryview) -> None:
        # Nothing belongs here before the answer.
        if not self._over:
            self._stream.abort()
            self._close()

    def on_abort(self) -> None:
        if not self._over:
            self._close()


class Link:
    """Holds the channel of one qube and serves its sockets."""

    def __init__(self, name: str, directory: str, default_user: str, database: dict[str, str]) -> None:
        self.loop = Loop()
        self.log = Log(name)
        self._directory = directory
        self._default_user = default_user
        self._channel: Channel | None = None
        self._channel_sock: socket.socket | None = None
        self._strikes = 0
        self._ready: dict[str, Any] | None = None
        self._closed_why = ""
        self._waiting: list[Callable[[], None]] = []
        self._callers = Callers(self.loop)
        self._tokens = CALL_BURST
        self._tokens_at = time.monotonic()
        self._told_rate_at = 0.0
        self.database = Database()
        for key, value in database.items():
            self.database.write(key, value.encode())
        self._database_stream: DatabaseStream | None = None
        self._console = Console(self.loop, self.path("console.sock"), self._linger)
        Listener(self.loop, listen(self.path("link.sock"), 0o600), self._connection)
        self._database_server = DatabaseServer(self.loop, listen(self.path("qubesdb.sock"), 0o600), self.database)

    def path(self, name: str) -> str:
        """A path in the qube's run-time directory."""
        return f"{self._directory}/{name}"

    # -- the channel

    def connect(self) -> None:
        """Connect to the qube's port and begin a session."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self.path("channel.sock"))
        except OSError as error:
            sock.close()
            self._end(f"the qube's port is gone: {error.strerror}")
            self._linger()
            return
        sock.setblocking(False)
        self._channel_sock = sock
        self._channel = Channel(self.loop, sock.fileno(), True, self._opened, self._session, self._lost)
        self._channel.reset()

    def _session(self) -> None:
        self.log("the agent answers")

    def _lost(self, why: str) -> None:
        """The machine has ended, or the qube broke the protocol: that concerns nobody else."""
        channel, sock = self._channel, self._channel_sock
        self._channel = self._channel_sock = None
        self._ready = None
        self._callers.use(None)
        self._database_stream = None
        if channel is not None:
            channel.close()
        if sock is not None:
            sock.close()
        if why.startswith(("closed", "read failed", "write failed")):
            self._end("the machine has ended")
            self._linger()
            return
        self._strikes += 1
        self.log(f"channel closed ({self._strikes} of {STRIKES}): {why}")
        if self._strikes >= STRIKES:
            self._end("the qube broke the protocol too often; start it anew")
        else:
            self.loop.later(0.2 * 2**self._strikes, self.connect)

    def _linger(self) -> None:
        """Go on for a while: somebody may still want to know what the console said last."""
        self.loop.later(LINGER_SECONDS, self.loop.stop)

    def _end(self, why: str) -> None:
        self._closed_why = why
        self.log(why)
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()

    def _opened(self, stream: Stream, payload: bytes) -> None:
        kind, body = payload[:1], payload[1:]
        try:
            if kind == CALL:
                self._asked(stream, body)
            elif kind == DATABASE and self._database_stream is None:
                self._database_stream = DatabaseStream(
                    self.loop, stream, HostMirror(self.database), self._database_broken
                )
            elif kind == READY and len(body) <= 4096:
                self._ready = parse_object(body, "ready")
                stream.abort()
                self._strikes = 0
                waiting, self._waiting = self._waiting, []
                for action in waiting:
                    action()
            else:
                raise ProtocolError(f"stream for {printable(repr(kind))}")
        except ProtocolError as error:
            why = str(error)
            self.loop.later(0, lambda: self._lost(why))

    def _database_broken(self, why: str) -> None:
        self.loop.later(0, lambda: self._lost(f"database: {why}"))

    def _asked(self, stream: Stream, body: bytes) -> None:
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
            stream.write(service_refused(ident))
            stream.eof()
            return
        if not self._allowed_rate():
            self.log(f"refused: too many calls: {trigger.call}")
            self._tell_rate(trigger.call, trigger.target)
            stream.write(service_refused(ident))
            stream.eof()
            return
        Asking(self, stream, ident, trigger.call, trigger.target)

    def _tell_rate(self, call: str, target: str) -> None:
        """Let the broker know of a refusal, so that who watches calls sees it; once a second is enough."""
        now = time.monotonic()
        if now - self._told_rate_at < 1:
            return
        self._told_rate_at = now
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                sock.connect(self.path("broker.sock"))
                sock.send(json.dumps({"service": call, "target": target, "refused": "rate"}).encode() + b"\n")
            except OSError:
                pass

    def _allowed_rate(self) -> bool:
        now = time.monotonic()
        self._tokens = min(CALL_BURST, self._tokens + (now - self._tokens_at) * CALLS_PER_SECOND)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    # -- requests from this host

    def _connection(self, sock: socket.socket) -> None:
        FirstMessage(self.loop, sock, _lengths, self._requested)

    def _requested(self, sock: socket.socket, kind: int, body: bytes) -> None:
        if kind == CONTROL:
            try:
                self._control(sock, parse_object(body, "control message"))
            except ProtocolError as error:
                self.log(str(error))
                sock.close()
            return
        if self._ready is None and not self._closed_why:
            # Between two sessions: a link that was killed comes back within a moment, so its calls wait for that.
            self._patient(sock, kind, body)
            return
        channel = self._channel
        self._callers.use(channel if self._ready is not None else None)
        self._callers.add(CALL + message(kind, body), sock)

    def _patient(self, sock: socket.socket, kind: int, body: bytes) -> None:
        """Serve the call when there is a session; send it away when there is none soon."""
        served = False

        def again() -> None:
            nonlocal served
            if not served:
                served = True
                self._requested(sock, kind, body)

        def enough() -> None:
            nonlocal served
            if not served:
                served = True
                sock.close()

        self._waiting.append(again)
        self.loop.later(PATIENCE_SECONDS, enough)

    def _control(self, sock: socket.socket, request: dict[str, Any]) -> None:
        operation = request.get("op")
        if operation == "ready":
            self._when_ready(sock, float(request.get("within", 60)))
        elif operation == "console":
            self._reply(sock, {"text": self._console.text()[-20000:]})
        elif operation == "terminal":
            try:
                self._reply(sock, {"path": self._console.terminal()})
            except OSError as error:
                self._reply(sock, {"why": error.strerror or "no terminal can be made"})
        elif operation == "poweroff":
            if self._channel is not None and self._ready is not None:
                self._channel.open(POWER + b"off", StreamHandler())
                self._reply(sock, {"asked": True})
            else:
                sock.close()
        elif operation == "status":
            self._reply(sock, {"ready": self._ready is not None, "strikes": self._strikes, "why": self._closed_why})
        else:
            raise ProtocolError("unknown control message")

    def _reply(self, sock: socket.socket, answer: dict[str, Any]) -> None:
        try:
            sock.setblocking(True)
            sock.settimeout(2)
            sock.sendall(control_message(answer))
        except OSError:
            pass
        sock.close()

    def _when_ready(self, sock: socket.socket, within: float) -> None:
        answered = False

        def answer() -> None:
            nonlocal answered
            if not answered:
                answered = True
                if self._ready is not None:
                    self._reply(sock, {"ready": True, "agent": self._ready})
                else:
                    why = self._closed_why or f"its agent did not answer within {within:g} seconds"
                    self._reply(sock, {"ready": False, "why": why})

        if self._ready is not None or self._closed_why:
            answer()
        else:
            self._waiting.append(answer)
            self.loop.later(within, answer)


def _lengths(fields: tuple[int, int]) -> int:
    if fields[0] == CONTROL:
        if fields[1] > MAX_CONTROL:
            raise ProtocolError("control message too long")
        return fields[1]
    return HOST_REQUESTS(fields)
