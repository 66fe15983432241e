"""The serial console of a real guest, used from a terminal."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live


class Terminal:
    """qvm-console on a terminal of its own."""

    def __init__(self, world: World, *argv: str) -> None:
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            ["qvm-console", *argv], env={**world.environment, "TERM": "vt100"}, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        self.seen = b""

    def type(self, text: bytes) -> bool:
        return os.write(self.master, text) != len(text)

    def until(self, text: bytes, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            try:
                self.seen += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break
        assert text in self.seen
        self.seen = self.seen.partition(text)[2]

    def shell(self) -> None:
        """Wait for a shell that answers; what is typed before it is there is lost, as on any serial line."""
        for _ in range(10):
            self.type(b"echo re''ady%d\r" % self.process.pid)
            try:
                self.until(b"\rready%d\r\n" % self.process.pid, 2)
            except AssertionError:
                continue
            return
        raise AssertionError(self.seen)

    def close(self) -> int:
        status = self.process.wait(20)
        os.close(self.master)
        return status


def test_a_shell_on_the_console(world: World, usable: str) -> None:
    one = Terminal(world, usable)
    one.until(b"leaves")
    one.shell()
    one.type(b"mine=$((40+2)); echo it is $mine; id -u; tty\r")
    one.until(b"it is 42\r\n0\r\n/dev/ttyS0")
    two = Terminal(world, usable)
    two.until(b"Somebody else")
    assert two.close() == 1
    one.type(b"\x1d")  # leave
    assert one.close() == 0
    again = Terminal(world, usable)
    again.until(b"leaves")
    again.type(b"\recho still $mine\r")
    again.until(b"still 42")
    # Whoever left the shell is not told of its end: the one that came back stays, with no shell.
    free = "flock -n /run/casemate-console.lock echo free"
    wait_for(lambda: again.type(b"\rexit\r") or world.inside(usable, free, "root", None) == "free")
    again.type(b"\x1d")
    assert again.close() == 0
    last = Terminal(world, usable)
    last.until(b"leaves")
    last.shell()
    last.type(b"exit\r")
    assert last.close() == 0
    assert world.inside(usable, "echo the channel goes on") == "the channel goes on"
