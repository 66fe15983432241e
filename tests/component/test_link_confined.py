"""What a hijacked link cannot do, tried in a process that was confined as a link is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.link import landlock
from casemate.link.confine import MAX_FILES
from tests.component.rig import rig

TRIES = {
    "another process": "os.fork()",
    "another program": "os.execv('/bin/true', ['true'])",
    "a thread": "__import__('threading').Thread(target=print).start()",
    "the network": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a namespace": "libc.unshare(0x10000000) and refused()",
    "a mount": "libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) and refused()",
    "tracing": "libc.ptrace(0, 0, 0, 0) and refused()",
    "another user": "os.setuid(os.getuid())",
    "an io_uring": "libc.syscall(425, 1, None) == -1 and refused()",
}
"""What is tried, as an expression that raises an error where it is refused."""

SCRIPT = """
import ctypes, os, socket
from casemate.link.confine import confine
libc = ctypes.CDLL(None, use_errno=True)
def refused():
    raise OSError(ctypes.get_errno(), "refused")
{before}
try:
    {expression}
except (OSError, RuntimeError) as error:
    print("refused", getattr(error, "errno", ""))
else:
    print("done")
"""


def run(expression: str, before: str = "confine()") -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(expression=expression, before=before)], capture_output=True, text=True
    )
    return done.stdout.split()[0] if done.stdout else f"ended with {done.returncode}: {done.stderr}"


@pytest.mark.parametrize("what", TRIES)
def test_a_link_cannot_have(what: str) -> None:
    assert run(TRIES[what]) == "refused"


def test_a_link_can_have_what_it_needs() -> None:
    assert run("socket.socketpair(); socket.socket(socket.AF_UNIX); open('/dev/null').close(); os.pipe()") == "done"
    assert run("open('/proc/self/status').read().index('NoNewPrivs:\\t1')") == "done"
    assert run("open('/proc/self/status').read().index('Seccomp:\\t2')") == "done"
    limit = f"__import__('resource').getrlimit(__import__('resource').RLIMIT_NOFILE) == ({MAX_FILES}, {MAX_FILES})"
    assert run(f"{limit} or refused()") == "done"


def test_the_tries_are_refused_by_the_confinement_alone() -> None:
    """Without it they work, for root at least: so each of the tests above can fail."""
    for what in ("another process", "a thread", "the network", "another user"):
        assert run(TRIES[what], before="") in ("done", "donedone"), what
    if os.geteuid() == 0:
        assert run(TRIES["a namespace"], before="") == "done"


FILES = {
    "a file of its user": "open(secret).close()",
    "a new file": "open(directory + '/new', 'w').close()",
    "a file beside its sockets": "open(directory + '/own').close()",
    "a directory": "os.listdir('/')",
    "a new directory": "os.mkdir(directory + '/new')",
    "a link": "os.symlink('/etc', directory + '/new')",
    "a fifo": "os.mkfifo(directory + '/new')",
    "a socket elsewhere": "socket.socket(socket.AF_UNIX).bind(secret + '.sock')",
    "removing elsewhere": "os.unlink(secret)",
    "a signal": "os.kill(os.getppid(), 0)",
    "an abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0' + secret)",
    "processes": "os.listdir('/proc')",
}
"""Of the first, all are allowed by the modes of the files: they lie in directories of the process's own user."""


def with_files(tmp_path: Path, expression: str, before: str) -> str:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for path in (inside, outside):
        path.mkdir(exist_ok=True)
    (inside / "own").write_text("x")
    (outside / "secret").write_text("x")
    names = f"directory, secret = {str(inside)!r}, {str(outside / 'secret')!r}\n"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + str(outside / "secret"))
        listener.listen(1)
        return run(expression, names + before)


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("what", FILES)
def test_a_link_opens_no_file_but_its_sockets(tmp_path: Path, what: str) -> None:
    if what in ("a signal", "an abstract socket") and landlock.version() < 6:
        pytest.skip("this kernel's Landlock knows nothing of it")
    assert with_files(tmp_path, FILES[what], "confine(directory)") == "refused"
    assert with_files(tmp_path, FILES[what], "") == "done", "so it is the confinement that refuses"


def test_a_link_has_the_files_that_it_needs(tmp_path: Path) -> None:
    """Also where the kernel has no Landlock: then all else of the confinement holds."""
    sockets = "s = socket.socket(socket.AF_UNIX); s.bind(directory + '/a.sock'); os.unlink(directory + '/a.sock')"
    terminal = "import termios, tty; m, s = os.openpty(); tty.setraw(s); termios.tcflush(s, 2); os.ttyname(s)"
    others = "open('/dev/null', 'r+b').close(); import email.message; import casemate.link.link"
    without = "from casemate.link import landlock; landlock.version = lambda: 0; "
    for expression in (sockets, terminal, others):
        assert with_files(tmp_path, expression, "confine(directory)") == "done", expression
        assert with_files(tmp_path, expression, without + "assert confine(directory) == 0") == "done", expression
    assert with_files(tmp_path, "os.fork()", without + "confine(directory)") == "refused"


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
def test_a_real_link_is_held_to_its_files(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        assert made.call("true")[0] in (0, 127)
        assert "files: Landlock, version" in (tmp_path / "link.log").read_text()
