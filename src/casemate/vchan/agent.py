"""An agent over vchan: serves the calls of its domain's daemon, and passes on those of programs in the domain.

    python -m casemate.vchan.agent [--domain N] [--agent-socket PATH] [--default-user NAME]

VCHAN_SOCKET_DIR and VCHAN_DOMAIN say where its sockets are and which domain it serves. Programs that know upstream's
protocol find it at PATH.
"""

from __future__ import annotations

import os
import socket
import sys

from casemate.calls.children import Children
from casemate.calls.spawn import Account
from casemate.calls.vchan_sockets import CONTROL_PORT, Server, SocketDirectory
from casemate.streams.deadlines import Deadlines
from casemate.streams.listener import Listener, listen
from casemate.streams.loop import Loop
from casemate.streams.messages import MessageSocket
from casemate.vchan.call import Served, service_of
from casemate.vchan.program import Log, many_files, serve
from casemate.wire import qrexec_control as control
from casemate.wire.errors import CallRefusedError, ProtocolError, ValueInvalidError, printable
from casemate.wire.qrexec import CONNECTION_TERMINATED, EXIT_FAILED, JUST_EXEC, SERVICE_CONNECT, SERVICE_REFUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET = "/run/qubes/qrexec-agent"
DAEMON = 0
REQUEST_SECONDS = 5.0
"""How long a program in the domain may take to say what it wants."""
HELLO_SECONDS = 10.0
PENDING = 1024 * 1024
"""Bytes for a daemon that does not read; above it requests are refused."""


class UserError(CallRefusedError):
    """The service would run as a user that this agent cannot be or does not know."""

    exit_status = EXIT_FAILED


class Accounts:
    """Users by name, each looked up once. Who is not root serves as who it is, and nobody else."""

    def __init__(self) -> None:
        import pwd

        try:
            self._own = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            self._own = str(os.geteuid())  # a user without an entry
        self._known: dict[str, Account | None] = {self._own: None}

    @property
    def own(self) -> str:
        """Who we are."""
        return self._own

    def __call__(self, name: str) -> Account | None:
        """The account to become; None: we are it."""
        if name not in self._known:
            if os.geteuid() != 0:
                raise UserError(f"this agent runs as {self._own} and serves nobody as {printable(name, 40)}")
            try:
                self._known[name] = Account(name)
            except KeyError:
                raise UserError(f"no user {printable(name, 40)} here") from None
        return self._known[name]


class Agent:
    """One domain's agent. Without a daemon it waits for the next; calls under way go on."""

    def __init__(self, loop: Loop, vchans: SocketDirectory, agent_socket: str, default_user: str = "") -> None:
        self._loop = loop
        self._vchans = vchans
        self._accounts = Accounts()
        self._default_user = default_user or self._accounts.own
        self._served = Served(loop, Children(loop), vchans.directory, account_of=self._accounts)
        self._daemon: MessageSocket | None = None
        self._version = 0
        self._session = 0
        self._count = 0
        self._asking: dict[bytes, _Caller] = {}
        self._requests = Deadlines(loop, REQUEST_SECONDS)
        self._hellos = Deadlines(loop, HELLO_SECONDS)
        self._socket_path = agent_socket
        Listener(loop, listen(agent_socket, 0o666), self._connection)
        self._await_daemon()

    def close(self) -> None:
        """Take our names away."""
        self._server.close()
        try:
            os.unlink(self._socket_path)
        except OSError:
            pass

    # -- the daemon

    def _await_daemon(self) -> None:
        self._server = Server(self._loop, self._vchans.serving(DAEMON, CONTROL_PORT), self._connected)

    def _connected(self, sock: socket.socket) -> None:
        self._session += 1
        self._version = 0
        self._daemon = MessageSocket(self._loop, sock, control.HELLOS, self._hello, self._lost)
        self._hellos.add(self, lambda: self._drop("it does not speak"))
        self._daemon.send(control.hello(control.CONTROL_VERSION))

    def _hello(self, _kind: int, body: bytes) -> None:
        assert self._daemon is not None
        if self._version:
            self._message(_kind, body)
            return
        self._hellos.discard(self)
        self._version = min(control.parse_hello(body), control.CONTROL_VERSION)
        self._daemon.lengths = control.DAEMON_MESSAGES

    def _drop(self, why: str) -> None:
        if self._daemon is not None:
            self._daemon.close()
            self._lost(why)

    def _lost(self, why: str) -> None:
        self._hellos.discard(self)
        self._daemon = None
        if why != "closed":
            _say(f"the daemon is gone: {why}")
        asking, self._asking = self._asking, {}
        for caller in asking.values():
            caller.close()
        self._await_daemon()

    def _send(self, session: int, data: bytes) -> None:
        """To the daemon that knows what it is about: another one would take it for something of its own."""
        if self._daemon is not None and session == self._session:
            self._daemon.send(data)

    def _message(self, kind: int, body: bytes) -> None:
        if kind == SERVICE_CONNECT:
            domain, port, ident = control.parse_params(body)
            caller = self._asking.pop(control.padded_ident(ident), None)
            if caller is None:
                # Its program has gone meanwhile; the daemon waits to hear that.
                self._send(self._session, control.params(CONNECTION_TERMINATED, domain, port))
            else:
                caller.granted(domain, port)
        elif kind == SERVICE_REFUSED:
            caller = self._asking.pop(body, None)
            if caller is not None:
                caller.close()
        else:
            self._execute(kind == JUST_EXEC, *control.parse_params(body))

    def _execute(self, bare: bool, domain: int, port: int, rest: bytes) -> None:
        text = control.command_text(rest)
        control.check_command(text)
        session = self._session
        self._served.serve(
            self._vchans.path(domain, self._vchans.domain, port),
            service_of(text, self._default_user, self._accounts, bare),
            lambda: self._send(session, control.params(CONNECTION_TERMINATED, domain, port)),
        )

    # -- programs of this domain

    def _connection(self, sock: socket.socket) -> None:
        caller = _Caller(self._loop, sock, self._requested, self._gone)
        self._requests.add(caller, caller.close)

    def _requested(self, caller: _Caller, body: bytes) -> None:
        self._requests.discard(caller)
        daemon = self._daemon
        if daemon is None or not self._version or daemon.pending > PENDING:
            caller.close()
            return
        self._count += 1
        ident = b"SOCKET%d" % self._count
        try:
            message = control.trigger(self._version, body, ident)
        except ValueInvalidError as error:
            _say(str(error))
            caller.close()
            return
        caller.session = self._session
        caller.ident = ident.ljust(32, b"\0")
        self._asking[caller.ident] = caller
        daemon.send(message)

    def _gone(self, caller: _Caller) -> None:
        self._requests.discard(caller)
        if caller.place is not None:
            self._send(caller.session, control.params(CONNECTION_TERMINATED, *caller.place))
        elif caller.ident:
            self._asking.pop(caller.ident, None)


class _Caller:
    """A program that asks for a call, and afterwards holds its connection as long as the call lives."""

    __slots__ = ("_socket", "ident", "place", "session")

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_request: Callable[[_Caller, bytes], None],
        on_gone: Callable[[_Caller], None],
    ) -> None:
        self.ident = b""
        self.session = 0
        self.place: tuple[int, int] | None = None

        def requested(_kind: int, body: bytes) -> None:
            if self.ident:
                raise ProtocolError("qrexec: a second request on one connection")
            on_request(self, body)

        self._socket = MessageSocket(loop, sock, control.LOCAL_TRIGGERS, requested, lambda _why: on_gone(self))

    def granted(self, domain: int, port: int) -> None:
        """Tell the program where to serve."""
        self.place = (domain, port)
        self._socket.send(control.place_answer(domain, port))

    def close(self) -> None:
        """Refuse."""
        self._socket.close()


_say = Log("casemate-vchan-agent")


def main(argv: list[str]) -> int:
    """Serve until a signal ends it."""
    domain: int | None = None
    path, user = SOCKET, ""
    for word in argv[1:]:
        option, _equals, value = word.partition("=")
        if option == "--domain" and value.isdecimal():
            domain = int(value)
        elif option == "--agent-socket" and value:
            path = value
        elif option == "--default-user" and value:
            user = value
        elif option not in ("--no-fork-server", "--fork-server-socket", "--vchan"):
            sys.stderr.write(__doc__ or "")
            return 2
    many_files()
    loop = Loop()
    agent = Agent(loop, SocketDirectory.of(os.environ, domain), path, user)
    _ready()
    try:
        serve(loop, _say)
    finally:
        agent.close()
    return 0


def _ready() -> None:
    """Tell who started us: systemd, or a pipe as stdout."""
    path = os.environ.pop("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.send(b"READY=1")
    sys.stdout.write("ready\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
