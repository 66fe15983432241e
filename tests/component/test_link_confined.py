"""What a hijacked link cannot do, tried in a process that was confined as a link is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from casemate.link.confine import MAX_FILES

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
