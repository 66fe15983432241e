"""A program on a terminal of its own, for tests that press keys and look at what is shown.

pexpect's own ``spawn`` forks this process. In one with threads, such as that of a fake daemon, the child of a fork may
wait for ever for a lock that another thread held. Here the kernel starts the program directly (``subprocess``), and
``setsid --ctty`` gives it the terminal.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pexpect.fdpexpect import fdspawn


@contextmanager
def on_terminal(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path | None = None, timeout: float = 60, columns: int = 400
) -> Iterator[fdspawn]:
    """The program, to be talked to; it is ended with the block. ``timeout`` is in seconds for each ``expect``."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=dict(env), cwd=cwd
    )
    os.close(theirs)
    child = fdspawn(ours, encoding="utf-8", timeout=timeout)
    child.delaybeforesend = None
    try:
        yield child
    finally:
        child.close()  # the terminal hangs up, which ends a shell
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
