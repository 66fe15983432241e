"""A real guest whose agent hangs: who waits for it is told, status and trace show it, nothing waits for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live

STOP = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
# Signals do not stop process 1, a tracer does: PTRACE_SEIZE and PTRACE_INTERRUPT.
assert libc.ptrace(0x4206, pid, None, None) == 0
assert libc.ptrace(0x4207, pid, None, None) == 0
time.sleep(float(sys.argv[2]))
"""
"""Stops a process for so many seconds. When the tracer ends, the process goes on."""


@pytest.fixture
def stopped(world: World, usable: str) -> Iterator[str]:
    """A qube whose agent is stopped for 75 seconds."""
    first = world.inside(usable, "tr '\\0' ' ' </proc/1/cmdline", user="root")
    service = "systemctl show -p MainPID --value casemate-agent"
    pid = "1" if "agent" in first else world.inside(usable, service, user="root")
    root = ("qvm-run", "-u", "root", "-p", usable)
    world.run(*root, "cat >/run/stop.py", data=STOP.encode())
    world.run(*root, f"setsid python3 /run/stop.py {pid} 75 </dev/null >/dev/null 2>&1 &")
    wait_for(lambda: b"no answer" in world.run("casemate", "status").stdout, 30)
    yield usable
    wait_for(lambda: b"no answer" not in world.run("casemate", "status").stdout, 120)
    assert world.inside(usable, "echo on") == "on"


def test_a_guest_that_hangs_is_told_of_everywhere(world: World, stopped: str) -> None:
    assert f"{stopped}: its agent gives no sign of life".encode() in world.run("casemate", "status").stdout
    trace = world.start("casemate", "trace", stopped)
    assert trace.stderr is not None and b"Watching" in trace.stderr.readline()
    begin = time.monotonic()
    done = world.run("qvm-run", "-p", stopped, "echo never", status=255, timeout=120)
    took = time.monotonic() - begin
    assert f"{stopped} does not answer; waiting".encode() in done.stderr
    assert b"it has not answered for" in done.stderr and done.stdout == b""
    assert 28 < took < 60, took
    trace.terminate()
    shown, _ = trace.communicate(timeout=30)
    assert f"silent    dom0 -> {stopped}".encode() in shown
    tool = world.start("qvm-run", "-p", stopped, "echo never")
    time.sleep(3)
    tool.terminate()
    assert tool.wait(30) != 0, "who waits can still interrupt"
    # One that has given input waits, and loses nothing of it.
    done = world.run("qvm-run", "-p", stopped, "cat", data=b"kept\n", timeout=180)
    assert done.stdout == b"kept\n" and b"does not answer; waiting" in done.stderr
