"""The guest's end of a qube's serial console: a terminal whose other end the daemon hands out."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes.daemon import FakeDaemon


def _ready(fd: int, what: int, seconds: float) -> bool:
    """Whether a descriptor is ready in time. By poll: a long run has more descriptors than select() can name."""
    found = select.poll()
    found.register(fd, what)
    return bool(found.poll(max(0, int(seconds * 1000))))


class Guest:
    """Prints, and reads what was typed. ``path`` is the terminal that the daemon tells of."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path

    def write(self, data: bytes) -> None:
        """Print all of it; the other end must read."""
        end = time.monotonic() + 30
        while data:
            assert _ready(self._fd, select.POLLOUT, end - time.monotonic()), "nobody reads the console"
            data = data[os.write(self._fd, data) :]

    def write_until_full(self, piece: bytes, most: int, seconds: float = 1.0) -> int:
        """Print until nothing is taken for so long, or ``most`` bytes were; how many were taken."""
        taken = 0
        while taken < most and _ready(self._fd, select.POLLOUT, seconds):
            taken += os.write(self._fd, piece)
        return taken

    def read_until(self, end: bytes) -> bytes:
        """What was typed, up to ``end``."""
        found = b""
        until = time.monotonic() + 30
        while not found.endswith(end):
            assert _ready(self._fd, select.POLLIN, until - time.monotonic()), f"only {found!r} came"
            found += os.read(self._fd, 65536)
        return found

    def close(self) -> None:
        """The machine ends: its end of the terminal goes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_used(self) -> bool:
        """Whether somebody has the console for himself."""
        fd = os.open(self.path, os.O_RDWR | os.O_NOCTTY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


@contextmanager
def console(daemon: FakeDaemon) -> Iterator[Guest]:
    """The console of any qube of a daemon, until the block ends."""
    ours, theirs = pty.openpty()
    real = daemon.parts.power.console
    path = os.ttyname(theirs)

    async def told(name: str) -> str:
        await real(name)  # a qube that does not run has none
        return path

    guest = Guest(ours, path)
    try:
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        daemon.parts.power.console = told  # type: ignore[method-assign]
        yield guest
    finally:
        daemon.parts.power.console = real  # type: ignore[method-assign]
        os.close(theirs)
        guest.close()
