"""vchan over unix sockets: a byte stream between two domains, at the path where foreign programs look for it.

The path is that of upstream's socket backend: ``DIRECTORY/vchan.SERVER.CLIENT.PORT.sock``, domains and port as decimal
numbers; bytes on the socket are the bytes of the vchan. A server takes exactly one peer. It appears at its path
already listening (bound elsewhere, then renamed), and its name goes when the peer has come or the owner gives it up:
nobody ever finds the listener of an earlier call.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from casemate.streams.deadlines import Deadlines
from casemate.streams.loop import READ, Loop
from casemate.wire.errors import DisconnectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

DIRECTORY = "/var/run/vchan"
DATABASE_PORT = 111
CONTROL_PORT = 512
FIRST_DATA_PORT = 513
DATA_PORTS = 256

CONNECT_SECONDS = 120.0
"""How long a peer is waited for in a data channel, as in upstream's agents."""

_SOON, _SELDOM = 0.001, 0.25
"""Seconds between attempts to connect to a server that is there and takes nobody yet: the first pause, and the longest
that doubling leads to."""
_IDLE = 1.0
"""Seconds without a waiting client after which the directory is not watched any more."""
_DEAD = 5.0
"""Seconds of refused connections after which a socket's server counts as killed. A live one refuses only between its
bind and its listen."""
_EVENT = struct.Struct("iIII")
_CREATE, _MOVED_TO = 0x100, 0x80
_count = 0


class SocketDirectory:
    """The directory with the sockets of all vchans, seen from one domain. A value; made from the environment."""

    __slots__ = ("directory", "domain")

    def __init__(self, directory: str, domain: int) -> None:
        self.directory = directory
        self.domain = domain

    @classmethod
    def of(cls, environ: Mapping[str, str], domain: int | None = None) -> SocketDirectory:
        """As ``VCHAN_SOCKET_DIR`` and ``VCHAN_DOMAIN`` say."""
        if domain is None:
            domain = int(environ.get("VCHAN_DOMAIN") or 0)
        return cls(environ.get("VCHAN_SOCKET_DIR") or DIRECTORY, domain)

    def path(self, server: int, client: int, port: int) -> str:
        """The socket between two domains."""
        return f"{self.directory}/vchan.{server}.{client}.{port}.sock"

    def serving(self, client: int, port: int) -> str:
        """The socket at which we wait for another domain."""
        return self.path(self.domain, client, port)


class Listening:
    """A listening socket and its path. ``close`` removes both; the path only while it is that of this socket."""

    __slots__ = ("_inode", "path", "sock")

    def __init__(self, path: str) -> None:
        global _count
        _count += 1
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        hidden = f"{os.path.dirname(path)}/.{os.getpid()}.{_count}"
        try:
            try:
                self.sock.bind(hidden)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                os.unlink(hidden)  # of a killed process that had our number
                self.sock.bind(hidden)
            self.sock.listen(1)
            self._inode = os.stat(hidden).st_ino
            os.rename(hidden, path)
        except BaseException:
            self.sock.close()
            raise

    def accept(self) -> socket.socket:
        """Accept the one peer; after that the socket and its path are gone."""
        peer, _address = self.sock.accept()
        self.close()
        return peer

    def close(self) -> None:
        """Stop listening."""
        if self.sock.fileno() >= 0:
            self.sock.close()
            try:
                if os.stat(self.path).st_ino == self._inode:
                    os.unlink(self.path)
            except OSError:
                pass


class Server:
    """Listens for the one peer of a vchan; ``on_connected`` gets its socket. ``close`` stops listening."""

    def __init__(self, loop: Loop, path: str, on_connected: Callable[[socket.socket], None]) -> None:
        self._loop = loop
        self._on_connected = on_connected
        self._listening = Listening(path)
        self._listening.sock.setblocking(False)
        self._fd = self._listening.sock.fileno()
        loop.watch(self._fd, READ, self._ready)

    def _ready(self, _mask: int) -> None:
        self._loop.unwatch(self._fd)
        try:
            peer = self._listening.accept()
        except OSError:  # gone again, or no descriptors
            self._fd = self._listening.sock.fileno()
            self._loop.later(_SELDOM, self._again)
            return
        self._fd = -1
        self._on_connected(peer)

    def _again(self) -> None:
        if self._fd >= 0:
            self._loop.watch(self._fd, READ, self._ready)

    def close(self) -> None:
        """Stop waiting; does nothing when the peer has come."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            self._fd = -1
            self._listening.close()


class _Waiting:
    __slots__ = ("on_connected", "on_failed", "path", "pause", "refused", "sock")

    def __init__(
        self, path: str, on_connected: Callable[[socket.socket], None], on_failed: Callable[[str], None]
    ) -> None:
        self.path = path
        self.on_connected = on_connected
        self.on_failed = on_failed
        self.pause = _SOON
        self.refused = 0.0
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.setblocking(False)


class Connector:
    """Connects to servers that may appear later; nothing blocks, and nothing is polled while a server is missing.

    One inotify(7) watch of the directory tells when a server appears. After ``seconds`` (None: never) a client that is
    still waiting is told by ``on_failed(why)``.
    """

    def __init__(self, loop: Loop, directory: str, seconds: float | None = CONNECT_SECONDS) -> None:
        self._loop = loop
        self._directory = directory
        self._by_name: dict[str, set[_Waiting]] = {}
        self._libc: Any = None
        self._inotify = -1
        self._watched = -1
        self._used = False
        self._deadlines = Deadlines(loop, seconds) if seconds is not None else None

    def connect(
        self, path: str, on_connected: Callable[[socket.socket], None], on_failed: Callable[[str], None]
    ) -> object | None:
        """Connect to the server at ``path``; returns what ``cancel`` takes. The answer may come before the return."""
        try:
            waiting = _Waiting(path, on_connected, on_failed)
        except OSError as error:  # no descriptors
            on_failed(error.strerror or "no socket")
            return None
        if not self._try(waiting, first=True):
            self._by_name.setdefault(path.rpartition("/")[2], set()).add(waiting)
            if self._deadlines is not None:
                self._deadlines.add(waiting, lambda: self._fail(waiting, "nobody is there"))
            self._watch()
            # The server may have come between the attempt and the watch.
            if waiting.sock.fileno() >= 0:
                self._try(waiting)
        return waiting

    def cancel(self, waiting: object | None) -> None:
        """Do not connect any more."""
        if isinstance(waiting, _Waiting) and self._forget(waiting):
            waiting.sock.close()

    def _forget(self, waiting: _Waiting) -> bool:
        name = waiting.path.rpartition("/")[2]
        found = self._by_name.get(name)
        if found is None or waiting not in found:
            return False
        found.discard(waiting)
        if not found:
            del self._by_name[name]
        if self._deadlines is not None:
            self._deadlines.discard(waiting)
        return True

    def _fail(self, waiting: _Waiting, why: str) -> None:
        self._forget(waiting)
        waiting.sock.close()
        waiting.on_failed(why)

    def _try(self, waiting: _Waiting, first: bool = False) -> bool:
        """One attempt; True when it is over, well or not."""
        number = waiting.sock.connect_ex(waiting.path)
        if number == 0:
            self._forget(waiting)
            waiting.on_connected(waiting.sock)
            return True
        if number == errno.ENOENT:
            if self._watched < 0 and not first:
                self._later(waiting)
            return False
        if number == errno.EAGAIN or number == errno.ECONNREFUSED and not self._is_dead(waiting):
            self._later(waiting)
            return False
        self._fail(waiting, os.strerror(number))
        return True

    def _is_dead(self, waiting: _Waiting) -> bool:
        """A name where nobody listens: its server is about to, or was killed. Who waits for ever waits for the next."""
        now = time.monotonic()
        if not waiting.refused:
            waiting.refused = now
        return self._deadlines is not None and now - waiting.refused > _DEAD

    def _later(self, waiting: _Waiting) -> None:
        self._loop.later(waiting.pause, lambda: self._again(waiting))
        waiting.pause = min(2 * waiting.pause, _SELDOM)

    def _again(self, waiting: _Waiting) -> None:
        if waiting in self._by_name.get(waiting.path.rpartition("/")[2], ()):
            self._try(waiting)

    def _watch(self) -> None:
        if self._watched >= 0:
            return
        if self._libc is None:
            import ctypes  # slow to import, and seldom wanted by a program of one call

            self._libc = ctypes.CDLL(None, use_errno=True)
            self._inotify = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._inotify < 0:
            return
        watched = self._libc.inotify_add_watch(self._inotify, os.fsencode(self._directory), _CREATE | _MOVED_TO)
        if watched >= 0:
            self._watched = watched
            self._loop.watch(self._inotify, READ, self._changed)
            self._loop.later(_IDLE, self._unwatch)

    def _unwatch(self) -> None:
        """Stop watching the directory when no client has waited for a while. The inotify descriptor stays open, because
        closing one takes the kernel milliseconds."""
        if self._by_name or self._used:
            self._used = False
            self._loop.later(_IDLE, self._unwatch)
            return
        assert self._libc is not None
        self._loop.unwatch(self._inotify)
        self._libc.inotify_rm_watch(self._inotify, self._watched)
        self._watched = -1

    def _changed(self, _mask: int) -> None:
        try:
            data = os.read(self._inotify, 65536)
        except BlockingIOError:
            return
        if not self._by_name:
            return
        self._used = True
        at = 0
        while at < len(data):
            number, _what, _cookie, length = _EVENT.unpack_from(data, at)
            name = os.fsdecode(data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0"))
            at += _EVENT.size + length
            names = list(self._by_name) if number < 0 else [name]  # -1: events were lost
            for name in names:
                for waiting in list(self._by_name.get(name, ())):
                    self._try(waiting)


def accept_within(listening: Listening, seconds: float) -> socket.socket:
    """For a program of one call: wait for the peer; DisconnectedError when it does not come."""
    listening.sock.settimeout(seconds)
    try:
        peer = listening.accept()
    except TimeoutError:
        raise DisconnectedError("The other end of the call did not connect") from None
    finally:
        listening.close()
    peer.settimeout(None)
    return peer
