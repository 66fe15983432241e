"""The socket of a domain's daemon: where it is, and the conversation with each client up to its one request."""

from __future__ import annotations

import os
import socket

from casemate.streams.deadlines import Deadlines
from casemate.streams.loop import READ, Loop
from casemate.streams.messages import MessageSocket
from casemate.wire import qrexec_control as control
from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    OnRequest = Callable[["Client", int, int, int, bytes], None]

REQUEST_SECONDS = 5.0
"""How long a client may take from its connection to the end of its request."""
BACKLOG = 512
UNDECIDED = 2048
"""Clients that have not asked yet; one more, and the one that has waited longest goes."""
_AT_ONCE = 32
_PAUSE = 0.2


class Client:
    """A client's connection: HELLO, one request, then silence until its call has ended.

    ``answer`` and ``end`` are for who serves it; ``on_gone`` is called when it leaves first.
    """

    __slots__ = ("_greeted", "_listener", "_socket", "asked", "on_gone")

    def __init__(self, listener: DaemonSocket, loop: Loop, sock: socket.socket) -> None:
        self._listener = listener
        self._greeted = False
        self.asked = False
        self.on_gone: Callable[[], None] = _nothing
        self._socket = MessageSocket(loop, sock, control.HELLOS, self._message, self._ended)
        self._socket.send(control.hello(control.CLIENT_VERSION))

    def _message(self, kind: int, body: bytes) -> None:
        if not self._greeted:
            control.parse_hello(body, control.CLIENT_VERSION)
            self._greeted = True
            self._socket.lengths = control.CLIENT_REQUESTS
            return
        self.asked = True
        self._socket.lengths = None
        self._listener.asked(self, kind, body)

    def _ended(self, _why: str) -> None:
        self._listener.gone(self)
        self.on_gone()

    def answer(self, message: bytes) -> None:
        """The request's answer."""
        self._socket.send(message)

    def end(self) -> None:
        """The call has ended, or the request was not one."""
        self._listener.gone(self)
        self._socket.leave()


class DaemonSocket:
    """Listens at ``DIR/qrexec.DOMID``, with links to it for the domain's other names. No client can make it wait."""

    def __init__(
        self, loop: Loop, directory: str, domain: int, names: Sequence[str], on_request: OnRequest, mode: int = 0o660
    ) -> None:
        self._loop = loop
        self._on_request = on_request
        self._deadlines = Deadlines(loop, REQUEST_SECONDS)
        self._clients: set[Client] = set()
        target = f"qrexec.{domain}"
        self._path = f"{directory}/{target}"
        self._links = [f"{directory}/qrexec.{name}" for name in names]
        self._target = target
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._sock.setblocking(False)
        hidden = f"{directory}/.qrexec.{domain}"
        _remove(hidden)
        self._sock.bind(hidden)
        os.chmod(hidden, mode)
        self._sock.listen(BACKLOG)
        os.rename(hidden, self._path)
        for link in self._links:
            _remove(hidden)
            os.symlink(target, hidden)
            os.rename(hidden, link)
        loop.watch(self._sock.fileno(), READ, self._ready)

    def _ready(self, _mask: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptors: the one that has waited longest without asking makes room
                if self._drop_oldest():
                    continue
                self._loop.unwatch(self._sock.fileno())
                self._loop.later(_PAUSE, self._again)
                return
            if len(self._deadlines) >= UNDECIDED:
                self._drop_oldest()
            client = Client(self, self._loop, sock)
            self._clients.add(client)
            self._deadlines.add(client, client.end)

    def _again(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.watch(self._sock.fileno(), READ, self._ready)

    def _drop_oldest(self) -> bool:
        drop = self._deadlines.oldest()
        if drop is not None:
            drop()
        return drop is not None

    def asked(self, client: Client, kind: int, body: bytes) -> None:
        """A whole request has come."""
        self._deadlines.discard(client)
        domain, port, rest = control.parse_params(body)
        try:
            self._on_request(client, kind, domain, port, rest)
        except ProtocolError:
            client.end()

    def gone(self, client: Client) -> None:
        """A client is no more."""
        self._deadlines.discard(client)
        self._clients.discard(client)

    def close(self) -> None:
        """Take the names away and let every client go."""
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        for link in self._links:
            try:
                if os.readlink(link) == self._target:
                    os.unlink(link)
            except OSError:
                pass
        _remove(self._path)
        for client in list(self._clients):
            client.end()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _nothing() -> None:
    pass
