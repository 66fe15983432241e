"""The name service of a net qube: hands queries of the qubes that it serves to its own resolvers, and lets the
addresses of permitted names through before the answer goes back.

::

    qube ── query ──▶ NameService ── under another number, from a port of its own ──▶ resolver
    qube ◀─ answer ── NameService ◀─ is it the answer to that question? ───────────── resolver
                          └── learn(qube, name, addresses): into nft sets, first

A query has one socket of its own, so that who wants to forge an answer has to guess port and number. All waiting ends;
what waits is bounded for each qube, so that one that asks without end keeps no other from its answers.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from casemate.streams.exactly import exactly
from casemate.streams.loop import READ, Loop
from casemate.wire import dns
from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.wire.dns import Question

    Learn = Callable[[str, str, Sequence[tuple[str, int]]], None]

MAX_WAITING = 256
"""Limit of a net qube: queries that wait for an answer."""
MAX_WAITING_OF_ONE = 32
"""Limit of a net qube: queries of one qube that wait for an answer; more are not answered."""
MAX_CONNECTIONS = 16
"""Limit of a net qube: connections to its name service by TCP."""
SECONDS = 4.0
"""How long one resolver has; then the next is asked, then the query fails."""


class _Query:
    """One query on its way. ``answer`` gets the answer, or None when there is none."""

    def __init__(
        self, service: NameService, client: str, asked: Question, data: bytes, answer: Callable[[bytes | None], None]
    ) -> None:
        self._service = service
        self._client = client
        self._asked = asked
        self._answer = answer
        self._number = int.from_bytes(os.urandom(2), "big")
        self._data = dns.with_number(data, self._number)
        self._servers = service.servers()
        self._socket: socket.socket | None = None
        self._timer = service.loop.later(0, self._next)

    def _next(self) -> None:
        self._close()
        if not self._servers:
            self._finish(None)
            return
        server = self._servers.pop(0)
        self._timer = self._service.loop.later(SECONDS, self._next)
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._socket.connect((server, 53))  # then the kernel takes datagrams of this server alone
            self._socket.send(self._data)
        except OSError:
            return  # no way to it: the timer asks the next one
        self._service.loop.watch(self._socket.fileno(), READ, lambda _mask: self._readable())

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._timer.cancel()
            self._next()  # it said that nobody is there
            return
        try:
            if len(data) < 2 or int.from_bytes(data[:2], "big") != self._number:
                return
            addresses = dns.parse_answer(data, self._asked)
        except ProtocolError:
            return  # forged or broken: the real one may still come
        self._service.learn(self._client, self._asked.name, addresses)
        self._finish(dns.with_number(data, self._asked.number))

    def _finish(self, data: bytes | None) -> None:
        self._timer.cancel()
        self._close()
        self._service.ended(self._client)
        self._answer(data)

    def _close(self) -> None:
        if self._socket is not None:
            self._service.loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None


class NameService:
    """Listens for UDP and TCP. ``learn`` is called with a client's address, a name, and its addresses."""

    def __init__(self, loop: Loop, port: int, servers: Callable[[], list[str]], learn: Learn) -> None:
        self.loop = loop
        self.servers = servers
        self.learn = learn
        self._waiting: dict[str, int] = {}
        self._total = 0
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._udp.bind(("0.0.0.0", port))  # noqa: S104
        loop.watch(self._udp.fileno(), READ, lambda _mask: self._datagrams())
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind(("0.0.0.0", port))  # noqa: S104
        self._tcp.listen(MAX_CONNECTIONS)
        self._places = threading.Semaphore(MAX_CONNECTIONS)
        threading.Thread(target=self._accept, name="dns tcp", daemon=True).start()

    def _datagrams(self) -> None:
        for _round in range(64):
            try:
                data, (client, port) = self._udp.recvfrom(dns.MAX_UDP)
            except OSError:
                return
            try:
                asked = dns.parse_query(data)
            except ProtocolError:
                continue
            self._ask_for(client, port, asked, data)

    def _ask_for(self, client: str, port: int, asked: Question, data: bytes) -> None:
        def answer(found: bytes | None) -> None:
            try:
                self._udp.sendto(found or dns.failure(data, asked, 2), (client, port))
            except OSError:
                pass  # the qube has gone

        self.ask(client, asked, data, answer)

    def ask(self, client: str, asked: Question, data: bytes, answer: Callable[[bytes | None], None]) -> bool:
        """Ask the resolvers; False when too many queries wait already, and then no answer comes."""
        if self._total >= MAX_WAITING or self._waiting.get(client, 0) >= MAX_WAITING_OF_ONE:
            return False
        self._waiting[client] = self._waiting.get(client, 0) + 1
        self._total += 1
        _Query(self, client, asked, data, answer)
        return True

    def ended(self, client: str) -> None:
        """A query of a client has come to its end."""
        self._total -= 1
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]

    # -- TCP: answers that are too long for a datagram; rare, so a thread each, for a few seconds

    def _accept(self) -> None:
        while True:
            try:
                connection, (client, _port) = self._tcp.accept()
            except OSError as error:
                sys.stderr.write(f"net-qube: name service: {error}\n")
                return
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve_tcp, args=(connection, client), daemon=True).start()

    def _serve_tcp(self, connection: socket.socket, client: str) -> None:
        try:
            with connection:
                connection.settimeout(SECONDS)
                data = _message(connection)
                asked = dns.parse_query(data)
                number = int.from_bytes(os.urandom(2), "big")
                for server in self.servers():
                    try:
                        found = _ask_whole(server, dns.with_number(data, number))
                    except OSError:
                        continue
                    addresses = dns.parse_answer(found, asked)
                    self.learn(client, asked.name, addresses)
                    answer = dns.with_number(found, asked.number)
                    connection.sendall(len(answer).to_bytes(2, "big") + answer)
                    return
        except (OSError, ProtocolError):
            pass
        finally:
            self._places.release()


def _ask_whole(server: str, data: bytes) -> bytes:
    """An answer that is not cut: by one large datagram, because not every way to a resolver carries TCP (that of
    pasta's older versions does not), else by TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.settimeout(SECONDS)
        resolver.connect((server, 53))
        resolver.send(dns.with_room(data, dns.MAX_UDP))
        found = resolver.recv(65536)
        if found[:2] == data[:2] and not dns.is_cut(found):
            return found
    with socket.create_connection((server, 53), SECONDS) as resolver:
        resolver.sendall(len(data).to_bytes(2, "big") + data)
        return _message(resolver)


def _message(connection: socket.socket) -> bytes:
    try:
        return exactly(connection, int.from_bytes(exactly(connection, 2), "big"))
    except EOFError:
        raise ProtocolError("DNS: a message is cut") from None
