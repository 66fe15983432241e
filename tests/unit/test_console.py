"""The console: what a guest prints can do no harm, and a terminal of the host is joined to it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.client.console import Harmless
from casemate.link.console import CONSOLE_BYTES, Console
from casemate.streams.loop import Loop
from casemate.streams.ready import readable


@pytest.mark.parametrize(
    ("untrusted", "shown"),
    [
        (b"plain\r\n\tx\x08\x07", b"plain\r\n\tx\x08\x07"),
        (b"\x1b[1;31mred\x1b[0m\x1b[2J\x1b[H\x1b[?25l", b"\x1b[1;31mred\x1b[0m\x1b[2J\x1b[H\x1b[?25l"),
        (b"\x1b]0;title\x07", b"^[]0;title\x07"),
        (b"\x1b[6n\x1b[c\x1b[21t", b"^[[6n^[[c^[[21t"),
        (b"\x1bP$q\x1b\\", b"^[P$q^[\\"),
        (b"\x1b[?1049h\x1b[>c\x9b6n\xc3\xa9\x00\x7f", b"^[[?1049h^[[>c_6n____"),
        (b"\x1b[" + b"1;" * 20 + b"m", b"^[[" + b"1;" * 20 + b"m"),
    ],
)
def test_what_a_guest_prints(untrusted: bytes, shown: bytes) -> None:
    assert Harmless().pass_on(untrusted + b".") == shown + b"."
    slow = Harmless()
    assert b"".join(slow.pass_on(bytes([byte])) for byte in untrusted + b".") == shown + b"."


class Guest:
    """The other end of the console's socket, and the loop that the console runs in."""

    def __init__(self, directory: Path) -> None:
        path = str(directory / "console.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self.loop = Loop()
        self.console = Console(self.loop, path)
        self.sock = self._listener.accept()[0]
        self.sock.settimeout(5)

    def serve(self, seconds: float = 0.1) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.loop.once(0.02)

    def close(self) -> None:
        self.sock.close()
        self._listener.close()
        self.serve()
        self.loop.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    found = Guest(tmp_path)
    yield found
    found.close()


def read(fd: int) -> bytes:
    found = b""
    while readable([fd], 0.1):
        found += os.read(fd, 65536)
    return found


def test_a_terminal_shows_what_was_said_and_passes_both_ways(guest: Guest) -> None:
    guest.sock.sendall(b"before")
    guest.serve()
    user = os.open(guest.console.terminal(), os.O_RDWR | os.O_NOCTTY)
    assert read(user) == b"before"
    guest.sock.sendall(b"\x00\x03\x04\r\nnow")
    guest.serve()
    assert read(user) == b"\x00\x03\x04\r\nnow"
    os.write(user, b"\x03typed\r")
    guest.serve()
    assert guest.sock.recv(100) == b"\x03typed\r"
    os.close(user)
    # Who leaves takes nothing along: the guest goes on, the next one comes to the same terminal.
    guest.sock.sendall(b"alone")
    guest.serve()
    user = os.open(guest.console.terminal(), os.O_RDWR | os.O_NOCTTY)
    assert read(user).endswith(b"nowalone")
    guest.sock.close()
    guest.serve()
    assert readable([user], 5)
    with pytest.raises(OSError):
        assert not os.read(user, 10)
        raise OSError
    os.close(user)
    with pytest.raises(OSError, match="closed"):
        guest.console.terminal()


def test_a_guest_that_floods_a_terminal_that_nobody_reads(guest: Guest) -> None:
    guest.console.terminal()
    for _ in range(64):
        guest.sock.sendall(b"x" * 65536)
        guest.serve(0.01)
    assert len(guest.console._to_user) <= CONSOLE_BYTES and len(guest.console.text()) <= CONSOLE_BYTES
    begin = time.process_time()
    guest.serve(0.5)
    assert time.process_time() - begin < 0.25, "the loop must not spin"


def test_a_user_who_types_to_a_guest_that_does_not_read(guest: Guest) -> None:
    user = os.open(guest.console.terminal(), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    writable, sent = select.poll(), 0
    writable.register(user, select.POLLOUT)
    while sent < 4 << 20:
        try:
            sent += os.write(user, b"y" * 4096)
        except BlockingIOError:
            guest.serve(0.02)
            if not writable.poll(100):
                break
    assert sent < 4 << 20
    got = 0
    while got < sent:
        guest.serve(0.01)
        got += len(guest.sock.recv(1 << 20))
    assert got == sent
    os.close(user)
