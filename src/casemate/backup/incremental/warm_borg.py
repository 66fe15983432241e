"""borg loaded ahead: its modules are loaded and tested once for all commands of a run, while something else is done.

::

    job ── WarmBorg ── socket ──> borg_server.py ── fork ──> borg create
                                                 └─ fork ──> borg create

A start of borg takes 0.4 s, of which the command itself needs 0.1 s. Where borg is no program of Python's, or anything
else is not as expected, ``start`` gives nothing and the caller starts borg as ever. One command runs at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_SERVER = Path(__file__).with_name("borg_server.py")
_SHEBANG = re.compile(rb"#!(/[!-~]+/python3(?:\.[0-9]+)?)\n")
_LOAD_SECONDS = 30.0
"""How long loading may take; then borg is started as ever."""
_SETPRIV = "/usr/bin/setpriv"


class WarmBorg:
    """One server. Made where commands will follow; ``close`` when there are no more. Never raises."""

    def __init__(self, path: str) -> None:
        """Begin loading. ``path``: where borg is looked for, as in PATH."""
        self._socket: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._running: WarmProcess | None = None
        python = _python_of(shutil.which("borg", path=path))
        if python is None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._server = subprocess.Popen(
                    [_SETPRIV, "--pdeathsig", "KILL", "--", python, "-I", str(_SERVER), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], start_new_session=True, env={"PATH": path, "LC_ALL": "C.UTF-8"},
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
        except OSError:
            ours.close()
            return
        ours.settimeout(_LOAD_SECONDS)
        self._socket = ours

    def close(self) -> None:
        """End the server, and a command that is under way."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def start(
        self, words: Sequence[str], env: Mapping[str, str], stdin: int, stdout: int, passphrase: int
    ) -> WarmProcess | None:
        """Run borg with these words; None when that is not possible here.

        ``stdin`` and ``stdout`` are as for ``subprocess.Popen``; standard error is always a pipe. ``passphrase`` is a
        descriptor to read it from.
        """
        if self._socket is None or (self._running is not None and not self._running.ended):
            return None
        theirs: list[int] = []
        ours: list[IO[bytes] | None] = []
        try:
            for given, mode in ((stdin, "rb"), (stdout, "wb"), (subprocess.PIPE, "wb")):
                ours.append(_end(given, mode, theirs))
            message = json.dumps({"words": list(words), "env": dict(env)}).encode("ascii")
            socket.send_fds(self._socket, [message], [*theirs, passphrase])
            data, received, _flags, _address = socket.recv_fds(self._socket, 64, 1)
            if not data or len(received) != 1:
                raise OSError("the server has ended")
            self._running = WarmProcess(self._socket, received[0], ours)
            return self._running
        except (OSError, ValueError):
            for file in ours:
                if file is not None:
                    file.close()
            self.close()
            return None
        finally:
            for fd in theirs:
                os.close(fd)


class WarmProcess:
    """A borg that was forked; what is used of ``subprocess.Popen``. Owns its pipes' ends and the pidfd."""

    def __init__(self, sock: socket.socket, process: int, pipes: Sequence[IO[bytes] | None]) -> None:
        self.stdin, self.stdout, self.stderr = pipes
        self._socket = sock
        self._process = process
        self._status: int | None = None

    @property
    def ended(self) -> bool:
        """Whether it was waited for to its end."""
        return self._status is not None

    def kill(self) -> None:
        """End it at once."""
        if self._process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        if self._status is None:
            self._socket.settimeout(None)  # as long as borg takes; it ends with us
            try:
                data = self._socket.recv(64)
            except OSError:
                data = b""
            self._status = int(data) if data else -signal.SIGKILL  # the server was killed, and its child with it
            os.close(self._process)
            self._process = -1
        return self._status


def _end(given: int, mode: str, theirs: list[int]) -> IO[bytes] | None:
    """Add the child's end of a stream to ``theirs``; ours, where it is a pipe."""
    if given == subprocess.PIPE:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        theirs.append(reading if mode == "rb" else writing)
        return open(writing if mode == "rb" else reading, "wb" if mode == "rb" else "rb")
    theirs.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if given == subprocess.DEVNULL else os.dup(given))
    return None


def _python_of(program: str | None) -> str | None:
    """The interpreter that a program in Python names; None for any other program."""
    try:
        with open(program or "", "rb") as file:
            found = _SHEBANG.match(file.read(200))
    except OSError:
        return None
    return found[1].decode("ascii") if found else None
