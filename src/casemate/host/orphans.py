"""Orphans: makes this process the parent of descendants whose own parent has ended, and reaps them.

libvirt waits for the pid of an ended QEMU to vanish. A process 1 that reaps slowly, or a parent that does not reap,
costs it seconds there.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
from pathlib import Path

from casemate.host.lasting_process import start_time

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PR_GET_CHILD_SUBREAPER = 37
_LEADER_SECONDS = 60.0
"""Whoever waits for a child reaps it within milliseconds, on a busy machine within seconds."""


def become_subreaper() -> None:
    """Make orphaned descendants ours (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning("prctl(PR_SET_CHILD_SUBREAPER): %s", os.strerror(ctypes.get_errno()))


def is_subreaper() -> bool:
    """True after become_subreaper()."""
    value = ctypes.c_int(0)
    return ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0) == 0 and value.value == 1


def watch_orphans(loop: asyncio.AbstractEventLoop) -> None:
    """Reap adopted orphans as they end, on SIGCHLD; to be called in the main thread of a subreaper."""

    def reap() -> None:
        if leaders := reap_orphans():
            loop.call_later(_LEADER_SECONDS, reap_leaders, leaders)

    loop.add_signal_handler(signal.SIGCHLD, reap)
    reap()


def reap_orphans() -> dict[int, str]:
    """Reap ended children that are adopted orphans. Returns those of which that cannot be told, with their start times.

    A child of libvirt's that it waits for itself shares our session. One that leads its session is either Runner's, or
    what libvirt waits for while it makes a daemon, or what is left of a QEMU that made itself a daemon (``-daemonize``,
    in libvirt's trials of QEMU): by its looks alone nobody can tell. All others are orphans: a QEMU that libvirt made
    a daemon, a grandchild of a program.
    """
    ours = os.getsid(0)
    leaders = {}
    for pid in _children():
        try:
            session = os.getsid(pid)
            if session not in (ours, pid):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            elif session == pid and _has_ended(pid):
                leaders[pid] = start_time(pid)
        except (FileNotFoundError, ProcessLookupError, ChildProcessError):
            continue
    return leaders


def reap_leaders(leaders: dict[int, str]) -> None:
    """Reap those children that ended _LEADER_SECONDS ago and are there still: nobody waits for them."""
    for pid, started in leaders.items():
        try:
            if start_time(pid) == started:  # else the number is another child's by now, and its owner waits for that
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        except (FileNotFoundError, ProcessLookupError, ChildProcessError):
            continue


def _has_ended(child: int) -> bool:
    """Whether a child waits to be reaped; it is left to be reaped by whoever does."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _children() -> list[int]:
    """Pids of our children, by the kernel's lists of each thread's (proc(5))."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found.extend(map(int, (task / "children").read_text().split()))
        except OSError:
            continue
    return found
