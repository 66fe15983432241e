"""The control socket of casemate-qrexecd: one line of words a request, one or more lines of answer.

``add DOMID NAME [UUID [USER]]`` is answered with ``ok`` and, when the agent is there, ``up``; ``remove DOMID`` with
``ok``; ``list`` with a line ``DOMID NAME up|down PORTS`` each and ``ok``. What is wrong: ``error WHY``. Only who may
write to the socket (its owner) is listened to.
"""

from __future__ import annotations

import os
import socket

from casemate.streams.deadlines import Deadlines
from casemate.streams.listener import Listener, listen
from casemate.streams.loop import READ, Loop
from casemate.wire.errors import CasemateError, ValueInvalidError
from casemate.wire.names import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.vchan.daemon import Daemon

MAX_LINE = 256
SECONDS = 10.0


class Registry:
    """Serves the control socket. The connection of an ``add`` stays until the agent is there or the asker goes."""

    def __init__(self, loop: Loop, path: str, daemon: Daemon) -> None:
        self._loop = loop
        self._daemon = daemon
        self._path = path
        self._deadlines = Deadlines(loop, SECONDS)
        Listener(loop, listen(path, 0o600), self._connection)

    def close(self) -> None:
        """Take the name away."""
        try:
            os.unlink(self._path)
        except OSError:
            pass

    def _connection(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        data = bytearray()

        def end() -> None:
            self._deadlines.discard(sock)
            if sock.fileno() >= 0:
                self._loop.unwatch(sock.fileno())
                sock.close()

        def ready(_mask: int) -> None:
            try:
                more = sock.recv(MAX_LINE + 1)
            except BlockingIOError:
                return
            except OSError:
                more = b""
            data.extend(more)
            if not more or len(data) > MAX_LINE:
                end()
            elif data.endswith(b"\n"):
                line = data.decode("ascii", "replace").split()
                data.clear()
                self._deadlines.discard(sock)
                self._answer(sock, line)

        self._deadlines.add(sock, end)
        self._loop.watch(sock.fileno(), READ, ready)

    def _answer(self, sock: socket.socket, words: list[str]) -> None:
        try:
            answer = self._carry_out(sock, words)
        except (CasemateError, OSError) as error:
            answer = f"error {error}\n"
        _send(sock, answer)

    def _carry_out(self, sock: socket.socket, words: list[str]) -> str:
        daemon = self._daemon
        if words[:1] == ["add"] and 3 <= len(words) <= 5:
            domid = number(words[1], "domain", 1, 0x7FEF)
            daemon.add(domid, words[2], *words[3:])
            self._loop.later(0, lambda: daemon.when_up(domid, lambda word: _send(sock, word + "\n")))
            return "ok\n"
        if words[:1] == ["remove"] and len(words) == 2:
            daemon.remove(number(words[1], "domain"))
            return "ok\n"
        if words == ["list"]:
            lines = [
                f"{found.number} {found.name} {'up' if found.up else 'down'} {found.ports.used}\n"
                for _number, found in sorted(daemon.domains.items())
            ]
            return "".join(lines) + "ok\n"
        raise ValueInvalidError("add DOMID NAME [UUID [USER]], remove DOMID or list")


def _send(sock: socket.socket, text: str) -> None:
    try:
        sock.send(text.encode("ascii", "replace"))
    except OSError:
        pass
