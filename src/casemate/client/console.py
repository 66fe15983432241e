"""A qube's serial console: its terminal, a shell on the guest's side, and what of a qube's output may be shown."""

from __future__ import annotations

import fcntl
import os
import re
import socket

from casemate.client.calling import open_stream
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import CasemateError, ProtocolError
from casemate.wire.qrexec import EXEC_CMDLINE, Command, exec_message

_BUSY = 3

_SHELL = """exec flock -n -o -E {busy} /run/casemate-console.lock sh -c '
export TERM={term} HOME=/root; cd /root 2>/dev/null || cd /
stty sane rows {rows} cols {columns} </dev/ttyS0
exec setsid -c -w "${{SHELL:-/bin/sh}}" -i </dev/ttyS0 >/dev/ttyS0 2>&1'
"""
"""A shell on the guest's side of the console. There is one at a time; it stays when its user goes without ending it."""

_SAFE = re.compile(rb"\x1b\[(?:[0-9;]{0,16}[A-HJKLMPSTXdfm@]|\?(?:1|7|25|2004)[hl])")
"""Sequences that move, erase and colour. Others can make a terminal answer, resize or rename itself."""
_BEGUN = re.compile(rb"\x1b(?:\[[0-9;?]{0,18})?\Z")
_PLAIN = re.compile(rb"[ -~\r\n\t\b\x07]+")


class Harmless:
    """What a qube prints, so that it can do no more to a terminal than to write on it."""

    def __init__(self) -> None:
        self._left = b""

    def pass_on(self, untrusted_data: bytes) -> bytes:
        """The part that may be shown now; a sequence that has only begun waits for its end."""
        data, at, out = self._left + untrusted_data, 0, []
        begun = _BEGUN.search(data)
        end = begun.start() if begun else len(data)
        while at < end:
            match = _PLAIN.match(data, at, end) or _SAFE.match(data, at)
            if match is not None:
                out.append(match[0])
                at = match.end()
            else:
                out.append(b"^[" if data[at] == 0x1B else b"_")
                at += 1
        self._left = data[end:]
        return b"".join(out)


class Shell:
    """The call that keeps a shell on the guest's side. ``term`` is what the shell is told of the terminal, if that is a
    plain word.

    Raises NotRunningError and DisconnectedError where the qube's agent cannot be reached.
    """

    def __init__(self, qubes: Qubes, name: str, rows: int, columns: int, term: str) -> None:
        term = term if re.fullmatch(r"[a-z0-9-]{1,32}", term) else "vt100"
        line = _SHELL.format(busy=_BUSY, term=term, rows=rows, columns=columns)
        self._side = CallerSide()
        message = exec_message(Command("root", "qubes.VMShell", None, ADMIN).cmdline(), EXEC_CMDLINE)
        self.sock: socket.socket | None = open_stream(qubes, name, message, autostart=False)
        self.sock.sendall(b"".join([*self._side.stdin(line.encode()), *self._side.stdin_eof()]))

    def ended(self) -> bool:
        """Look at what came; whether the shell is over. One that somebody else left there goes on without us."""
        assert self.sock is not None
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        try:
            for _piece in self._side.feed(data):
                pass
        except ProtocolError:
            data = b""
        if data and self._side.exit_code is None:
            return False
        self.close()
        return self._side.exit_code is not None and self._side.exit_code != _BUSY

    def close(self) -> None:
        """Go; a shell that is still there stays."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def open_console(path: str, name: str) -> int:
    """The console's terminal at ``path``, ours alone; CasemateError where it cannot be, or somebody else has it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise CasemateError(f"The console of {name} cannot be opened ({path}): {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise CasemateError(f"Somebody else uses the console of {name}") from None
    return fd
