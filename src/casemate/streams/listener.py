"""The first message of a connection: read whole, nothing beyond it, within a deadline."""

from __future__ import annotations

import socket

from casemate.streams.loop import READ, Loop
from casemate.wire.errors import ProtocolError
from casemate.wire.qrexec import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 10.0
"""Limit of calls (seconds): time for the first message of a connection."""
BACKLOG = 1024
"""Connections that wait to be accepted; one more, and a caller that does not block is turned away."""


class FirstMessage:
    """Owns the socket until the message is there, then hands it over with ``on_message(socket, type, body)``.

    A connection that breaks the rules, ends or dawdles is closed without an answer.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        length_of: Callable[[tuple[int, int]], int],
        on_message: Callable[[socket.socket, int, bytes], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._length_of = length_of
        self._on_message = on_message
        self._data = b""
        self._need = HEADER.size
        self._kind = -1
        self._over = False
        sock.setblocking(False)
        loop.watch(sock.fileno(), READ, self._ready)
        loop.later(DEADLINE, self._close)

    def _ready(self, mask: int) -> None:
        try:
            data = self._sock.recv(self._need - len(self._data))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        self._data += data
        if len(self._data) < self._need:
            return
        if self._kind < 0:
            kind, length = HEADER.unpack(self._data)
            try:
                self._need = self._length_of((kind, length))
            except ProtocolError:
                self._close()
                return
            self._kind = kind
            self._data = b""
            if self._need:
                return
        self._over = True
        self._loop.unwatch(self._sock.fileno())
        self._on_message(self._sock, self._kind, self._data)

    def _close(self) -> None:
        if not self._over:
            self._over = True
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()


class Listener:
    """A listening unix socket; ``on_connection`` gets each accepted socket. Accepts nothing while ``full()``."""

    def __init__(self, loop: Loop, sock: socket.socket, on_connection: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._on_connection = on_connection
        self._loop = loop
        sock.setblocking(False)
        loop.watch(sock.fileno(), READ, self._ready)

    def _ready(self, mask: int) -> None:
        try:
            connection, _address = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:
            # Out of descriptors: let some calls end first.
            self._loop.unwatch(self._sock.fileno())
            self._loop.later(0.2, self._again)
            return
        self._on_connection(connection)

    def _again(self) -> None:
        self._loop.watch(self._sock.fileno(), READ, self._ready)


def listen(path: str, mode: int) -> socket.socket:
    """A listening unix socket at a path that is free, with these permissions from the beginning."""
    import os

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    old = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(old)
    sock.listen(BACKLOG)
    return sock
