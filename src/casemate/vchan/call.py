"""One call being served: connects to the caller, starts the service, ends when both are done."""

from __future__ import annotations

import errno
import os
import socket

from casemate.agent.service import failure_status, find_service
from casemate.agent.sessions import SERVICE as WAIT_FOR_SESSION
from casemate.agent.sessions import Sessions
from casemate.calls.children import Children
from casemate.calls.service import ServiceCall, refuse, tell_status
from casemate.calls.spawn import PATH, RUN_AS, Account, spawn, spawn_alone
from casemate.calls.spliced import SplicedCall
from casemate.calls.vchan_data import DataChannel
from casemate.calls.vchan_sockets import CONNECT_SECONDS, Connector
from casemate.streams.deadlines import Deadlines
from casemate.streams.loop import WRITE, Loop
from casemate.streams.socket_stream import SocketStream
from casemate.wire.call_data import ServiceSide
from casemate.wire.errors import CasemateError
from casemate.wire.names import user_name
from casemate.wire.qrexec import DATA_STDERR, DATA_STDOUT, EXIT_FAILED, parse_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    AccountOf = Callable[[str], Account | None]


class Program:
    """A service that is a program, made by ``service_of`` and started by ``Served``.

    ``account`` is who it runs as, None for who we are. With ``bare`` it has no input and no output, and the caller is
    told at once that it was started (JUST_EXEC). ``session`` is the user whose graphical session it waits for, empty
    for none.
    """

    __slots__ = ("account", "argv", "bare", "environment", "session")

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        account: Account | None,
        bare: bool = False,
        session: str = "",
    ) -> None:
        self.session = session
        self.argv = argv
        self.environment = environment
        self.account = account
        self.bare = bare


class SocketService:
    """A service that is a listening socket: ``address`` a path or (host, port). ``bare``: see Program."""

    __slots__ = ("address", "bare", "descriptor", "on_client_eof", "on_service_eof")

    def __init__(self, address: str | tuple[str, int], descriptor: bytes, flags: str = "", bare: bool = False) -> None:
        self.bare = bare
        self.address = address
        self.descriptor = descriptor
        self.on_service_eof = "s" in flags
        self.on_client_eof = "c" in flags


class Failure:
    """No service: what the caller is told instead."""

    __slots__ = ("bare", "status", "why")

    def __init__(self, status: int, why: str, bare: bool = False) -> None:
        self.status = status
        self.why = why
        self.bare = bare


Service = Program | SocketService | Failure


class Served:
    """The calls that this process serves: those of an agent, or the services of this host.

    ``log`` None is for an agent: what a service writes to stderr, and why it cannot be served, is told to the caller.
    For services of this host both stay here: their stderr is ours, and the reason is logged by ``log``.
    ``wait_for_hello`` says which end greets first. ``seconds`` is how long the caller's socket, and then its greeting,
    are waited for; None waits for the socket without end. ``account_of`` is for the program that waits for a session;
    without it nothing waits.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        directory: str,
        log: Callable[[str], None] | None = None,
        wait_for_hello: bool = False,
        seconds: float | None = CONNECT_SECONDS,
        account_of: AccountOf | None = None,
    ) -> None:
        self._loop = loop
        self._children = children
        self._account_of = account_of
        self._sessions = Sessions(self._wait_for_session)
        self._connector = Connector(loop, directory, seconds)
        self._hellos = Deadlines(loop, seconds or CONNECT_SECONDS)
        self._log = log
        self.on_status: Callable[[int], None] = _ignore
        """Called with the exit status of each call that was served or refused, as its caller is told it."""
        self._wait_for_hello = wait_for_hello

    def serve(self, path: str, what: Service, on_closed: Callable[[], None]) -> None:
        """Serve the caller that listens at ``path``; ``on_closed`` when all is over, also when nobody was there."""
        if isinstance(what, SocketService):
            self._reach(path, what, on_closed, 0)
        else:
            self._answer(path, lambda stream: self._begin(stream, what), on_closed)

    def _answer(self, path: str, begin: Callable[[DataChannel], None], on_closed: Callable[[], None]) -> None:
        def closed(stream: DataChannel) -> None:
            self._hellos.discard(stream)
            on_closed()

        def connected(sock: socket.socket) -> None:
            stream = DataChannel(self._loop, sock, closed, self._wait_for_hello)
            if not stream.closed:
                self._hellos.add(stream, lambda: None if stream.greeted else stream.abort())
            begin(stream)

        self._connector.connect(path, connected, lambda _why: on_closed())

    # -- programs

    def _begin(self, stream: DataChannel, what: Program | Failure) -> None:
        if stream.closed:
            return
        if isinstance(what, Failure):
            self._refuse(stream, what)
        elif what.session and self._account_of is not None:
            source = what.environment["QREXEC_REMOTE_DOMAIN"]
            self._sessions.hold(stream, what.session, source, lambda: self._try_start(stream, what))
        else:
            self._try_start(stream, what)

    def _try_start(self, stream: DataChannel, what: Program) -> None:
        try:
            self._start(stream, what)
        except OSError as error:
            self._refuse(stream, Failure(EXIT_FAILED, f"{what.argv[0]}: {error.strerror}\n", what.bare))

    def _refuse(self, stream: DataChannel, failure: Failure) -> None:
        self.on_status(failure.status)
        if failure.bare:
            tell_status(stream, failure.status)
        elif self._log is None:
            refuse(stream, failure.status, failure.why)
        else:
            self._log(failure.why.rstrip("\n"))
            side = ServiceSide()
            stream.writev(side.eof(DATA_STDERR) + side.exit(failure.status))
            stream.eof()

    def _start(self, stream: DataChannel, program: Program) -> None:
        argv, environment, account = program.argv, program.environment, program.account
        if account is not None:
            environment = {**environment, **account.environment()}
            if not os.access(RUN_AS, os.X_OK):
                argv, account = _as_user(argv, account), None
        if program.bare:
            # Nobody waits for its end: 0 says that it was started.
            self._children.add(spawn_alone(argv, environment, account), _ignore)
            self.on_status(0)
            tell_status(stream, 0)
            return
        pid, stdin, stdout, stderr = spawn(argv, environment, account, with_stderr=self._log is None)
        look = self._children.look
        tell = SplicedCall.of_program(self._loop, stream, stdin, stdout, stderr, look=look).exited

        def exited(status: int) -> None:
            self.on_status(status)
            tell(status)

        self._children.add(pid, exited)

    def _wait_for_session(self, user: str, source: str, done: Callable[[int], None]) -> None:
        assert self._account_of is not None
        found = service_of(f"{user}:QUBESRPC {WAIT_FOR_SESSION} {source}".encode(), user, self._account_of)
        try:
            if not isinstance(found, Program):
                raise OSError
            environment = {**found.environment, **(found.account.environment() if found.account else {})}
            pid, stdin, stdout, _stderr = spawn(found.argv, environment, found.account, with_stderr=False)
        except OSError:
            status = found.status if isinstance(found, Failure) else EXIT_FAILED
            self._loop.later(0, lambda: done(status))
            return
        try:
            os.write(stdin, user.encode() + b"\n")
        except OSError:
            pass  # it does not want to know
        os.close(stdin)
        os.close(stdout)
        self._children.add(pid, done)

    # -- sockets

    def _reach(self, path: str, what: SocketService, on_closed: Callable[[], None], attempt: int) -> None:
        """Connect to the service before its caller: what cannot be reached is told like any failure."""
        try:
            sock = _socket_of(what)
            number = sock.connect_ex(what.address)
        except OSError as error:
            self._unreachable(path, error.errno or errno.EIO, on_closed)
            return

        def again() -> None:
            sock.close()
            self._reach(path, what, on_closed, attempt + 1)

        def connected(_mask: int = 0) -> None:
            self._loop.unwatch(sock.fileno())
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                sock.close()
                self._unreachable(path, failed, on_closed)
            else:
                self._answer(path, begin, ended)

        def begin(stream: DataChannel) -> None:
            if stream.closed:
                return
            if what.bare:
                sock.send(what.descriptor)  # into the empty buffer of a new connection
                sock.close()
                tell_status(stream, 0)
            else:
                SocketCall(self._loop, stream, sock, what)
            self.on_status(0)

        def ended() -> None:
            if sock.fileno() >= 0:  # nobody came for it
                sock.close()
            on_closed()

        if number == errno.EAGAIN and attempt < _ATTEMPTS:
            self._loop.later(_PAUSE, again)  # its queue is full
        elif number in (0, errno.EINPROGRESS):
            if number:
                self._loop.watch(sock.fileno(), WRITE, connected)
            else:
                connected()
        else:
            sock.close()
            self._unreachable(path, number, on_closed)

    def _unreachable(self, path: str, number: int, on_closed: Callable[[], None]) -> None:
        self.serve(path, Failure(EXIT_FAILED, f"the service cannot be reached: {os.strerror(number)}\n"), on_closed)


_ATTEMPTS, _PAUSE = 200, 0.02


def _ignore(_status: int) -> None:
    pass


class SocketCall(ServiceCall):
    """A call whose service is a socket: over when both directions are."""

    def __init__(self, loop: Loop, stream: DataChannel, sock: socket.socket, service: SocketService) -> None:
        self._rules = service
        self._connection = SocketStream(loop, sock, drain=True)
        if service.descriptor:
            self._connection.write(service.descriptor)
        self._input_open = True
        super().__init__(stream, self._connection, None)

    def input_ended(self) -> None:
        if not self._input_open:
            return
        self._input_open = False
        if self._rules.on_client_eof:
            self._connection.finish()
            self.output_ended(DATA_STDOUT)
        super().input_ended()
        self._check_over()

    def output_ended(self, kind: int) -> None:
        super().output_ended(kind)
        self._check_over()

    def _check_over(self) -> None:
        """The status of a socket is always 0; what ends the call is its configuration."""
        if not self._outputs and (not self._input_open or self._rules.on_service_eof or self._connection.closed):
            self.exited(0)


def _socket_of(service: SocketService) -> socket.socket:
    family = socket.AF_UNIX
    if not isinstance(service.address, str):
        family = socket.AF_INET6 if ":" in service.address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    return sock


def _as_user(argv: Sequence[str], account: Account) -> list[str]:
    """As our own small program does where it is installed: the user, its groups and its home, then the program."""
    identity = [f"--reuid={account.uid}", f"--regid={account.gid}", f"--groups={account.group_list}"]
    home = account.home if os.path.isdir(account.home) else "/"
    return ["/usr/bin/setpriv", *identity, "--", "/usr/bin/env", "-C", home, *argv]


# -- what a command line asks for


def service_of(
    text: bytes,
    default_user: str,
    account_of: AccountOf,
    bare: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Service:
    """The service that a command line ``USER:[nogui:]COMMAND`` asks for.

    ``account_of(user)`` raises a CasemateError for a user that may not be had. A command that is no QUBESRPC is one for
    the user's shell.
    """
    user, _colon, rest = text.partition(b":")
    rest = rest.removeprefix(b"nogui:")
    try:
        if not rest.startswith(b"QUBESRPC "):
            account = account_of(default_user if user == b"DEFAULT" else user_name(user))
            shell = account.shell if account is not None else "/bin/sh"
            return Program([shell, "-c", os.fsdecode(rest)], {"PATH": PATH}, account, bare)
        command = parse_command(text.decode("ascii", "replace"))
        found = find_service(command, default_user, environ)
        if found.kind == "exec":
            session = found.user if found.config.wait_for_session else ""
            return Program(found.argv, found.environment, account_of(found.user), bare, session)
        kind, target, flags, descriptor = found.argv[-4:]
        account_of(found.user)
        address: str | tuple[str, int] = target
        if kind == "tcp":
            host, _space, port = target.rpartition(" ")
            address = (host, int(port))
        return SocketService(address, descriptor.encode("ascii") + b"\0" if descriptor else b"", flags, bare)
    except CasemateError as error:
        return Failure(failure_status(error), f"{error}\n", bare)
