"""One domain of the daemon: the control channel to its agent, its clients, its ports, the requests of its programs."""

from __future__ import annotations

import socket
import time
from collections import deque

from casemate.calls.vchan_sockets import CONTROL_PORT, DATA_PORTS, FIRST_DATA_PORT, Connector, SocketDirectory
from casemate.streams.deadlines import Deadlines
from casemate.streams.loop import Loop
from casemate.streams.messages import MessageSocket
from casemate.vchan.clients import Client, DaemonSocket
from casemate.vchan.ports import Ports
from casemate.wire import qrexec_control as control
from casemate.wire.errors import ProtocolError, ValueInvalidError, printable
from casemate.wire.names import qube_name, user_name, uuid_text
from casemate.wire.qrexec import CONNECTION_TERMINATED, SERVICE_CONNECT, SERVICE_REFUSED, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HELLO_SECONDS = 30.0
PORT_SECONDS = 60.0
"""How long a call waits for a port when all are in use."""
RETRY_FIRST, RETRY_MOST = 0.05, 2.0
AGENT_PENDING = 1024 * 1024
"""Bytes for an agent that does not read; above it new calls are refused."""
REQUESTS = 1024
"""Requests of a domain's programs that may wait for their answers."""
_RPC = b"QUBESRPC "


class Request:
    """A request of a program in the domain that has not been answered. ``over`` once it was, or its agent is gone."""

    __slots__ = ("asked", "domain", "over")

    def __init__(self, domain: Domain, asked: control.ServiceRequest) -> None:
        self.domain = domain
        self.asked = asked
        self.over = False

    def refuse(self, why: str) -> None:
        """Say no; the reason is for the log of this host."""
        if not self.over:
            call = printable(self.asked.full, 80)
            self.domain.log(f"{call} to {self.asked.target or '@default'} refused: {why}")
            self.domain.answered(self)
            self.domain.send(message(SERVICE_REFUSED, self.asked.ident))

    def connect(self, target: int, port: int) -> None:
        """Say where the program is to serve its caller's end."""
        if not self.over:
            self.domain.answered(self)
            self.domain.send(control.params(SERVICE_CONNECT, target, port, self.asked.ident))


class Domain:
    """A domain that we are told of. ``on_request`` decides about requests of its programs; ``on_up``: it is there."""

    def __init__(
        self,
        loop: Loop,
        vchans: SocketDirectory,
        connector: Connector,
        socket_dir: str,
        number: int,
        name: str,
        uuid: str,
        default_user: str,
        on_request: Callable[[Request], None],
        on_up: Callable[[Domain], None],
        log: Callable[[str], None],
    ) -> None:
        self.number = number
        self.name = qube_name(name)
        self.uuid = uuid_text(uuid) if uuid else ""
        self.default_user = user_name(default_user or "user")
        self._loop = loop
        self._socket_dir = socket_dir
        self._on_request = on_request
        self._on_up = on_up
        self._log = log
        self._path = vchans.path(number, vchans.domain, CONTROL_PORT)
        self._connector = connector
        self._connecting: object | None = None
        self._hellos = Deadlines(loop, HELLO_SECONDS)
        self._agent: MessageSocket | None = None
        self._version = 0
        self._listener: DaemonSocket | None = None
        self.ports = Ports(vchans, number)
        self._clients: dict[tuple[int, int], list[Client]] = {}
        self._requests: dict[bytes, Request] = {}
        self._waiting: deque[tuple[float, int, Callable[[int | None], None]]] = deque()
        self._resting = False
        self._pause = RETRY_FIRST
        self._removed = False
        self._ended_hooks: dict[tuple[int, int], Callable[[], None]] = {}
        self._connect()

    @property
    def up(self) -> bool:
        """True while its agent is there."""
        return self._listener is not None

    def log(self, text: str) -> None:
        """To the daemon's log, under our name."""
        self._log(f"{self.name}: {text}")

    def remove(self) -> None:
        """Forget the domain."""
        self._removed = True
        self._connector.cancel(self._connecting)
        if self._agent is not None:
            self._agent.close()
            self._lost("closed")

    # -- the agent

    def _connect(self) -> None:
        if not self._removed:
            self._connecting = self._connector.connect(self._path, self._connected, self._unreachable)

    def _unreachable(self, why: str) -> None:
        self.log(f"its agent cannot be reached: {why}")
        self._retry()

    def _retry(self) -> None:
        self._connecting = None
        self._loop.later(self._pause, self._connect)
        self._pause = min(2 * self._pause, RETRY_MOST)

    def _connected(self, sock: socket.socket) -> None:
        self._connecting = None
        self._version = 0
        self._agent = MessageSocket(self._loop, sock, control.HELLOS, self._message, self._lost)
        self._hellos.add(self, self._silent)

    def _silent(self) -> None:
        if self._agent is not None:
            self._agent.close()
            self._lost("its agent does not speak")

    def _lost(self, why: str) -> None:
        self._hellos.discard(self)
        if why != "closed":
            self.log(f"its agent was left: {why}")
        self._agent = None
        self._version = 0
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._clients.clear()
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.over = True
        waiting, self._waiting = self._waiting, deque()
        for _until, _caller, then in waiting:
            then(None)
        self.ports.reset()
        hooks, self._ended_hooks = self._ended_hooks, {}
        for hook in hooks.values():
            hook()
        if not self._removed:
            self._retry()

    def send(self, data: bytes) -> bool:
        """To the agent; False when there is none, or it does not read."""
        if self._agent is None or not self._version or self._agent.pending > AGENT_PENDING:
            return False
        self._agent.send(data)
        return True

    def _message(self, kind: int, body: bytes) -> None:
        assert self._agent is not None
        if not self._version:
            said = control.parse_hello(body)
            self._hellos.discard(self)
            self._version = min(said, control.CONTROL_VERSION)
            self._agent.lengths = control.AGENT_MESSAGES[self._version]
            self._agent.send(control.hello(said))
            if self._agent is not None:
                self._opened()
        elif kind == CONNECTION_TERMINATED:
            self._pause = RETRY_FIRST
            domain, port, _rest = control.parse_params(body)
            self._terminated(domain, port)
        else:
            self._pause = RETRY_FIRST
            self._asked(kind, body)

    def _opened(self) -> None:
        names = [self.name, *([f"uuid:{self.uuid}"] if self.uuid else [])]
        try:
            self._listener = DaemonSocket(self._loop, self._socket_dir, self.number, names, self._client_asks)
        except OSError as error:
            assert self._agent is not None
            self._agent.close()
            self._lost(f"{self._socket_dir}: {error.strerror}")
            return
        self._on_up(self)

    # -- requests of its programs

    def _asked(self, kind: int, body: bytes) -> None:
        try:
            request = Request(self, control.parse_request(kind, body))
        except ValueInvalidError as error:
            self.log(f"a request was refused: {error}")
            self.send(message(SERVICE_REFUSED, control.request_ident(kind, body)))
            return
        ident = request.asked.ident
        if ident in self._requests or len(self._requests) >= REQUESTS:
            self.log("a request was refused: too many wait, or one with its id does")
            self.send(message(SERVICE_REFUSED, ident))
            return
        self._requests[ident] = request
        self._on_request(request)

    def answered(self, request: Request) -> None:
        """The request waits no more."""
        request.over = True
        self._requests.pop(request.asked.ident, None)

    # -- ports and ends of calls

    def with_port(self, caller: int, then: Callable[[int | None], None]) -> None:
        """A port for a call of ``caller`` into this domain, when there is one; None when there is none in time."""
        port = self.ports.allocate(caller) if not self._waiting else None
        if port is not None:
            then(port)
            return
        self._waiting.append((time.monotonic() + PORT_SECONDS, caller, then))
        self._serve_waiting()
        if self._waiting:
            self._loop.later(PORT_SECONDS, self._serve_waiting)

    def _serve_waiting(self) -> None:
        now = time.monotonic()
        while self._waiting:
            until, caller, then = self._waiting[0]
            port = self.ports.allocate(caller)
            if port is None and until > now:
                break
            self._waiting.popleft()
            if port is None:
                self.log(f"no port came free within {PORT_SECONDS:g} seconds")
            then(port)
        rest = self.ports.rest()
        if self._waiting and rest is not None and not self._resting:
            self._resting = True
            self._loop.later(rest, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._serve_waiting()

    def _terminated(self, domain: int, port: int) -> None:
        """A call that this domain made or served has ended."""
        key = (domain, port)
        if key in self.ports.outgoing:
            self.ports.outgoing.discard(key)
        elif self.ports.release(domain, port) and self._waiting:
            self._serve_waiting()
        for client in self._clients.pop(key, ()):
            client.end()
        hook = self._ended_hooks.pop(key, None)
        if hook is not None:
            hook()

    def when_ended(self, domain: int, port: int, hook: Callable[[], None]) -> None:
        """Call ``hook`` once, when the call has ended or this domain's agent is gone."""
        self._ended_hooks[(domain, port)] = hook

    # -- its clients

    def execute(self, kind: int, caller: int, port: int, text: bytes) -> bool:
        """Have the agent serve a call; False when it takes none."""
        return self.send(control.params(kind, caller, port, self._command(text) + b"\0"))

    def _command(self, text: bytes) -> bytes:
        """With the default user's name, and a ``+`` after each service that has no argument."""
        user, _colon, rest = text.partition(b":")
        if user == b"DEFAULT":
            user = self.default_user.encode()
        prefix = b"nogui:" if rest.startswith(b"nogui:") else b""
        rest = rest[len(prefix) :]
        if rest.startswith(_RPC):
            call, space, more = rest[len(_RPC) :].partition(b" ")
            if b"+" not in call:
                rest = _RPC + call + b"+" + space + more
        return user + b":" + prefix + rest

    def _client_asks(self, client: Client, kind: int, caller: int, port: int, rest: bytes) -> None:
        if kind == SERVICE_CONNECT:
            # Whoever may open this socket may answer a request that waits, and only once: a program that decides by
            # itself does so in place of our policy's answer.
            request = self._requests.get(control.padded_ident(rest))
            if request is None:
                raise ProtocolError("qrexec: no such request waits")
            self.answered(request)
        else:
            control.check_command(control.command_text(rest))
        if port:
            if not FIRST_DATA_PORT <= port < FIRST_DATA_PORT + DATA_PORTS:
                raise ProtocolError("qrexec: no data channel has that port")
            self._forward(client, kind, caller, port, rest)
            return
        gone = False

        def left() -> None:
            nonlocal gone
            gone = True

        def granted(found: int | None) -> None:
            if found is None:
                client.end()
            elif gone:
                self.ports.release(caller, found)
            else:
                client.on_gone = _nothing
                client.answer(control.params(kind, self.number, found))
                self._forward(client, kind, caller, found, rest)

        client.on_gone = left
        self.with_port(caller, granted)

    def _forward(self, client: Client, kind: int, caller: int, port: int, rest: bytes) -> None:
        key = (caller, port)
        self._clients.setdefault(key, []).append(client)
        client.on_gone = lambda: self._client_gone(key, client)
        if kind == SERVICE_CONNECT:
            if not self.ports.has(caller, port):
                self.ports.outgoing.add(key)
            sent = self.send(control.params(kind, caller, port, rest))
        else:
            sent = self.execute(kind, caller, port, control.command_text(rest))
        if not sent:
            self.log("a call was refused: its agent does not read")
            self._terminated(caller, port)

    def _client_gone(self, key: tuple[int, int], client: Client) -> None:
        found = self._clients.get(key)
        if found is not None and client in found:
            found.remove(client)
            if not found:
                del self._clients[key]


def _nothing() -> None:
    pass


def call_text(user: str, call: str, source: str, requested: str = "") -> bytes:
    """The command line of a service; ``requested`` is the target as asked for, where the service runs on this host."""
    tail = ""
    if requested:
        tail = f" keyword {requested[1:]}" if requested.startswith("@") else f" name {requested}"
    return f"{user}:QUBESRPC {call} {source}{tail}".encode("ascii")
