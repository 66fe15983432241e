"""The agent: this guest's end of the channel. As process 1 it is also the guest's init."""

from __future__ import annotations

import os
import signal
import socket
import sys

from casemate.agent.port import find_port, open_port
from casemate.agent.renewal import SEED_KEY, prepare, renew, renew_fork, set_clock
from casemate.agent.service import NoServiceError, Service, failure_status, find_service
from casemate.agent.sessions import SERVICE as WAIT_FOR_SESSION
from casemate.agent.sessions import Sessions
from casemate.calls.children import Children
from casemate.calls.queue import CallQueue
from casemate.calls.service import ServiceCall, refuse, tell_status
from casemate.calls.spawn import Account, spawn, spawn_alone
from casemate.qdb.mirror import GuestMirror
from casemate.qdb.server import DatabaseServer, SessionStream
from casemate.qdb.session import Database
from casemate.streams.channel import Channel
from casemate.streams.listener import FirstMessage, Listener, listen
from casemate.streams.loop import Loop
from casemate.streams.mux_stream import MuxStream
from casemate.streams.stream import Handler
from casemate.wire.errors import CasemateError, ProtocolError
from casemate.wire.link import CALL, DATABASE, DONE, FORK_KEY, FREEZE, IMAGE_KEY, POWER, READY, RENEWED
from casemate.wire.qrexec import (
    EXIT_FAILED,
    EXIT_NO_SERVICE,
    GUEST_REQUESTS,
    HEADER,
    HOST_REQUESTS,
    JUST_EXEC,
    Command,
    message,
    parse_command,
    parse_exec,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.agent.network import Network

RUN = "/run/qubes"
APT_PROXY = "/etc/apt/apt.conf.d/01casemate-proxy"
NETWORK_PREFIX = "/qubes-"
NETWORK_KEYS = ("/qubes-mac", "/qubes-netvm-gateway")
"""Where one of these keys is, the qube has a network or serves others."""
_POLL_SECONDS = 0.02
_COMMANDS = ("qubes.VMShell", "qubes.VMExec", "qubes.VMRootShell", "qubes.VMRootExec")
"""Services that run a person's command: it is hung up when the person's end goes. Others clean up by themselves."""


class Agent:
    """Serves the host's calls, this guest's programs and its database."""

    def __init__(self, loop: Loop, fd: int, run: str) -> None:
        self._loop = loop
        self._fd = fd
        self._channel: Channel | None = None
        self._children = Children(loop)
        self._sessions = Sessions(self._wait_for_session)
        self._calls = CallQueue(loop)
        self._accounts: dict[str, Account | None] = {}
        self._database = Database(guest=True)
        self._database.on_change = self._changed
        self._network: Network | None = None
        self._seeded = False
        self._is_image = False
        self._identity_is = "own"
        self._fork: bytes | None = None
        self._frozen = False
        os.makedirs(run, mode=0o755, exist_ok=True)
        os.chmod(run, 0o755)
        Listener(loop, listen(f"{run}/qrexec-agent.sock", 0o666), self._connection)
        DatabaseServer(loop, listen(f"{run}/qubesdb.sock", 0o666), self._database)
        self._await_host()

    # -- the channel

    def _await_host(self) -> None:
        """A port without a host is always ready and always at its end: look again until there is one."""
        import select

        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if any(mask & select.POLLHUP for _fd, mask in poll.poll(0)):
            self._loop.later(_POLL_SECONDS, self._await_host)
            return
        self._channel = Channel(self._loop, self._fd, False, self._opened, self._session, self._lost, port=True)

    def _lost(self, _why: str) -> None:
        self._calls.use(None)
        self._channel = None
        self._loop.later(_POLL_SECONDS, self._await_host)

    def _session(self) -> None:
        assert self._channel is not None
        mirror = GuestMirror(self._database)
        mirror.on_synced = self._synced
        SessionStream(self._loop, self._channel.open(DATABASE, Handler()), mirror, lambda _why: None)

    def _synced(self) -> None:
        if self._database.tree.read(IMAGE_KEY) is not None:
            # We are to become an image. What is one guest's own comes later, in each that goes on from here.
            self._is_image = True
            self._identity_is = prepare()
            self._tell_ready()
            return
        if self._is_image:
            self._is_image = False
            renew(self._database.tree.read)
            self._identity_is = RENEWED
        fork = self._database.tree.read(FORK_KEY)
        if fork is not None and fork != self._fork:
            # A moment ago, for us, we were the guest that was copied. All of its programs but us stand still.
            self._fork = fork
            renew_fork(self._database.tree.read)
            self._identity_is = RENEWED
            self._seeded = False
            if self._network is not None:
                self._network.bring()
        self._configure()
        self._thaw()  # also in the guest that was copied, where its link died before it could say so
        if not self._need_network(self._tell_ready):
            self._tell_ready()

    def _set_up_updates(self) -> None:
        """A template without a network is updated through a net qube; a qube of it is not."""
        if self._database.tree.read("/type") == b"TemplateVM" and self._database.tree.read("/qubes-mac") is None:
            from casemate.agent.updates_port import UpdatesPort

            self._updates = UpdatesPort(self._loop, self._children)
        elif os.path.exists(APT_PROXY):
            os.unlink(APT_PROXY)

    def _freeze(self, stream: MuxStream, body: bytes) -> None:
        """Stop all other programs, or let them go on, and say so."""
        try:
            if body == b"1":
                from casemate.agent.freezer import freeze

                freeze()
                self._frozen = True
            else:
                set_clock(body[1:])  # this guest stood still meanwhile
                self._thaw()
        except OSError as error:
            sys.stderr.write(f"casemate-agent: {error}\n")
            stream.abort()
            return
        stream.write(DONE)
        stream.finish()

    def _thaw(self) -> None:
        if self._frozen:
            from casemate.agent.freezer import thaw

            self._frozen = False
            thaw()

    def _need_network(self, ready: Callable[[], None]) -> bool:
        """Set up the network, the first time that the qube has one; whether ``ready`` will be called for it."""
        if self._network is not None or os.geteuid() != 0:
            return False
        if all(self._database.tree.read(key) is None for key in NETWORK_KEYS):
            return False
        from casemate.agent.network import Network

        self._network = Network(self._loop, self._database.tree, self._children)
        self._network.begin(ready)
        return True

    def _changed(self, path: str) -> None:
        if not path.startswith(NETWORK_PREFIX):
            return
        if self._network is not None:
            self._network.changed(path)
        elif self._seeded:
            self._need_network(lambda: None)

    def _tell_ready(self) -> None:
        boot_id = ""
        if not self._is_image:  # the kernel makes it up when it is first read, and all guests of an image would have it
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot_id = file.read().strip()
        if self._channel is not None:
            # Written by hand: the json module takes a guest longer to import than all of this.
            body = f'{{"boot_id": "{boot_id}", "pid": {os.getpid()}, "identity": "{self._identity_is}"}}'
            self._channel.open(READY + body.encode(), Handler())

    def _configure(self) -> None:
        """What the host has told: name, time zone, services, fresh randomness."""
        tree = self._database.tree
        if os.geteuid() != 0 or self._seeded:
            return
        self._seeded = True
        try:
            self._set_up_updates()
        except OSError as error:
            sys.stderr.write(f"casemate-agent: updates: {error}\n")
        name = tree.read("/name")
        if name:
            socket.sethostname(name.decode("ascii"))
            try:
                with open("/etc/hostname", "wb") as file:
                    file.write(name + b"\n")
                with open("/etc/hosts", "wb") as file:
                    file.write(b"127.0.0.1 localhost\n127.0.1.1 " + name + b"\n")
            except OSError:
                pass
        seed = tree.read(SEED_KEY)
        if seed:
            with open("/dev/urandom", "wb") as file:
                file.write(seed)
            tree.remove(SEED_KEY)
        zone = (tree.read("/qubes-timezone") or b"").decode("ascii", "replace")
        if zone and ".." not in zone and os.path.exists(f"/usr/share/zoneinfo/{zone}"):
            try:
                os.unlink("/etc/localtime")
            except OSError:
                pass
            os.symlink(f"/usr/share/zoneinfo/{zone}", "/etc/localtime")
        os.makedirs("/run/qubes-service", exist_ok=True)
        for path, value in tree.items("/qubes-service/"):
            service = path[len("/qubes-service/") :]
            if value == b"1" and "/" not in service and service not in (".", ".."):
                open(f"/run/qubes-service/{service}", "w").close()

    # -- calls

    def _opened(self, stream: MuxStream, payload: bytes) -> None:
        kind, body = payload[:1], payload[1:]
        if kind == CALL:
            try:
                number, length = HEADER.unpack_from(body)
                if HOST_REQUESTS((number, length)) != len(body) - HEADER.size:
                    raise ProtocolError("request is cut")
                self._serve(stream, parse_exec(body[HEADER.size :]), number == JUST_EXEC)
            except (CasemateError, OSError, ValueError) as error:
                refuse(stream, failure_status(error), f"{error}\n")
        elif kind == FREEZE:
            self._freeze(stream, body)
        elif kind == POWER:
            stream.abort()
            from casemate.agent.power import power_off

            power_off()
        else:
            stream.abort()

    def _serve(self, stream: MuxStream, cmdline: str, alone: bool) -> None:
        found = find_service(parse_command(cmdline), self._default_user())
        # Without a graphical session there is none to wait for.
        if found.config.wait_for_session and self._database.tree.read("/qubes-gui-enabled") == b"True":
            self._account(found.user)
            source = found.environment["QREXEC_REMOTE_DOMAIN"]
            self._sessions.hold(stream, found.user, source, lambda: self._start_held(stream, found, alone))
        else:
            self._start(stream, found, alone)

    def _default_user(self) -> str:
        return (self._database.tree.read("/default-user") or b"user").decode("ascii")

    def _start_held(self, stream: MuxStream, found: Service, alone: bool) -> None:
        try:
            self._start(stream, found, alone)
        except (CasemateError, OSError) as error:
            refuse(stream, failure_status(error), f"{error}\n")

    def _start(self, stream: MuxStream, found: Service, alone: bool) -> None:
        """``alone``: it has no input and no output, and the caller is told at once that it was started."""
        if alone:
            account, environment = self._identity(found)
            self._children.add(spawn_alone(found.argv, environment, account), lambda _status: None)
            tell_status(stream, 0)
            return
        pid, stdin, stdout, stderr = self._spawn(found)
        call = ServiceCall.of_program(self._loop, stream, stdin, stdout, stderr, look=self._children.look)
        if found.path.rpartition("/")[2] in _COMMANDS:
            call.on_hang_up = lambda: _hang_up(pid)
        self._children.add(pid, call.exited)

    def _spawn(self, found: Service) -> tuple[int, int, int, int | None]:
        account, environment = self._identity(found)
        return spawn(found.argv, environment, account)

    def _identity(self, found: Service) -> tuple[Account | None, dict[str, str]]:
        """Who a service runs as, and its environment."""
        account = self._account(found.user)
        environment = dict(found.environment)
        if account is not None:
            environment.update(account.environment())
        return account, environment

    def _wait_for_session(self, user: str, source: str, done: Callable[[int], None]) -> None:
        try:
            found = find_service(Command("DEFAULT", WAIT_FOR_SESSION, None, source), self._default_user())
            pid, stdin, stdout, stderr = self._spawn(found)
        except NoServiceError:
            self._loop.later(0, lambda: done(EXIT_NO_SERVICE))
            return
        except (CasemateError, OSError):
            self._loop.later(0, lambda: done(EXIT_FAILED))
            return
        self._children.add(pid, done)
        try:
            os.write(stdin, user.encode() + b"\n")
        except BrokenPipeError:
            pass  # it has ended already; its status says what that means
        for fd in (stdin, stdout, stderr):
            if fd is not None:
                os.close(fd)

    def _account(self, name: str) -> Account | None:
        if os.geteuid() != 0:
            return None  # not a guest's agent: run as who we are
        if name not in self._accounts:
            try:
                self._accounts[name] = Account(name)
            except KeyError:
                raise ProtocolError(f"no user {name} here") from None
        return self._accounts[name]

    def _connection(self, sock: socket.socket) -> None:
        FirstMessage(self._loop, sock, GUEST_REQUESTS, self._requested)

    def _requested(self, sock: socket.socket, kind: int, body: bytes) -> None:
        self._calls.use(self._channel if self._channel is not None and self._channel.mux.connected else None)
        self._calls.add(CALL + message(kind, body), sock)


def _hang_up(group: int) -> None:
    """What a terminal that is closed does to the programs on it; ``group`` leads a session of its own."""
    try:
        os.killpg(group, signal.SIGHUP)
    except ProcessLookupError:
        pass  # it has just ended


def main(argv: list[str]) -> int:
    """Serve for ever. ``argv`` may name another port and run-time directory (for use without a machine)."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    loop = Loop()
    while (port := find_port()) is None:
        import time

        time.sleep(_POLL_SECONDS)
    Agent(loop, open_port(port), RUN)
    try:
        loop.run()
    except BaseException as error:
        sys.stderr.write(f"casemate-agent: {error!r}\n")
        raise
    return 0
