"""Asks the Admin API for what a call needs before it can be made: a domain started, a disposable made and ended."""

from __future__ import annotations

import os
import socket

from casemate.streams.deadlines import Deadlines
from casemate.streams.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET = "/var/run/qubesd.sock"
SECONDS = 300.0
"""A start may take long under emulation."""
MAX_ANSWER = 65536
_OK = b"0\0"
_NOT_HALTED = b"QubesVMNotHaltedError"


class AdminApi:
    """Calls methods as the host; ``path`` empty: every call fails."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._path = path
        self._deadlines = Deadlines(loop, SECONDS)

    def start(self, name: str, then: Callable[[str], None]) -> None:
        """Start a domain; ``then("")``, or with what went wrong. One that runs already is well."""

        def answered(data: bytes) -> None:
            then("" if data.startswith(_OK) or _NOT_HALTED in data[:64] else _why(data))

        self.call("admin.vm.Start", name, b"", answered)

    def call(self, method: str, dest: str, payload: bytes, then: Callable[[bytes], None]) -> None:
        """Call a method about ``dest``; ``then`` gets the whole answer, nothing when there was none."""
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError:  # no descriptors
            then(b"")
            return
        sock.setblocking(False)
        data = bytearray()
        request = f"{method} dom0 name {dest}\0".encode("ascii") + payload
        try:
            sock.connect(self._path)
            if sock.send(request) != len(request):
                raise OSError("it takes no more")
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            then(b"")
            return

        def end() -> None:
            self._deadlines.discard(data_of)
            self._loop.unwatch(sock.fileno())
            sock.close()
            then(bytes(data))

        def ready(_mask: int) -> None:
            try:
                more = os.read(sock.fileno(), MAX_ANSWER)
            except BlockingIOError:
                return
            except OSError:
                more = b""
            data.extend(more)
            if not more or len(data) > MAX_ANSWER:
                end()

        data_of = object()
        self._deadlines.add(data_of, end)
        self._loop.watch(sock.fileno(), READ, ready)


def created(data: bytes) -> str:
    """The name in an answer of admin.vm.CreateDisposable; empty when there is none."""
    return data[len(_OK) :].decode("ascii", "replace") if data.startswith(_OK) else ""


def _why(data: bytes) -> str:
    if not data:
        return "the Admin API does not answer"
    parts = data.split(b"\0")
    return parts[1].decode("ascii", "replace") if len(parts) > 1 else "the Admin API refused"
