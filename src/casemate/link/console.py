"""The qube's serial console: its last bytes, and a terminal of the host for who wants to use it."""

from __future__ import annotations

import errno
import os
import socket

from casemate.streams.loop import READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONSOLE_BYTES = 64 * 1024
"""Limit of a qube's channel (bytes): end of a qube's console output that is kept."""
CONSOLE_SHOWN = 3000
"""Bytes of console history replayed to a new user of the terminal. Below 4096, the size of a pty's buffer, so that the
replay never blocks."""


class Console:
    """Owns the connection to the machine's console and, once somebody has asked for it, a pseudo terminal."""

    def __init__(self, loop: Loop, path: str, on_end: Callable[[], None] = lambda: None) -> None:
        """``on_end`` is called when the machine has ended."""
        self._loop = loop
        self._tail = b""
        self._on_end = on_end
        self._to_guest = b""
        self._to_user = b""
        self._master = self._slave = -1
        self._sock: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            self._sock = None
            return
        self._sock.setblocking(False)
        loop.watch(self._sock.fileno(), READ, self._ready)

    def terminal(self) -> str:
        """The path of a terminal that is the console, made at first use; it begins with what was said last.

        It is for one user at a time: each that comes has what the one before had not read thrown away. Raises OSError.
        """
        import termios  # few links ever need it
        import tty

        if self._sock is None:
            raise OSError(errno.ENOTCONN, "the qube's console is closed")
        if self._master < 0:
            self._master, self._slave = os.openpty()
            # The guest's line discipline is the one that counts. Kept open here, or the terminal would hang up with
            # its first user.
            tty.setraw(self._slave)
            os.set_blocking(self._master, False)
            self._watch_master()
        termios.tcflush(self._slave, termios.TCIOFLUSH)
        self._to_user = self._tail[-CONSOLE_SHOWN:]
        self._pass_to_user()
        return os.ttyname(self._slave)

    def _ready(self, mask: int) -> None:
        if self._sock is None:
            return
        if mask & WRITE:
            self._pass_to_guest()
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._tail = (self._tail + data)[-CONSOLE_BYTES:]
            if self._master >= 0:
                # Where nobody reads, the oldest is lost, here as in the tail.
                self._to_user = (self._to_user + data)[-CONSOLE_BYTES:]
                self._pass_to_user()
        else:
            self._close()

    def _terminal_ready(self, mask: int) -> None:
        if mask & WRITE:
            self._pass_to_user()
        if mask & READ and not self._to_guest:
            try:
                self._to_guest = os.read(self._master, 4096)
            except OSError:
                return
            self._pass_to_guest()

    def _pass_to_user(self) -> None:
        try:
            self._to_user = self._to_user[os.write(self._master, self._to_user) :]
        except OSError:
            pass
        self._watch_master()

    def _pass_to_guest(self) -> None:
        if self._sock is None:
            return
        try:
            self._to_guest = self._to_guest[self._sock.send(self._to_guest) :]
        except OSError:
            pass
        self._loop.watch(self._sock.fileno(), READ | (WRITE if self._to_guest else 0), self._ready)
        self._watch_master()

    def _watch_master(self) -> None:
        if self._master >= 0:
            mask = (0 if self._to_guest else READ) | (WRITE if self._to_user else 0)
            self._loop.watch(self._master, mask, self._terminal_ready)

    def _close(self) -> None:
        """The machine has ended: who uses the terminal sees a hangup."""
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._on_end()
        if self._master >= 0:
            self._loop.unwatch(self._master)
            os.close(self._master)
            os.close(self._slave)
            self._master = self._slave = -1

    def text(self) -> str:
        """What is kept, one character a byte."""
        return self._tail.decode("latin-1")
