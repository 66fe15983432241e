"""Stops all other programs of the guest while it is copied, and in the copy until it has an identity of its own.

Programs notice nothing: the kernel's freezer (cgroup v2, cgroup.freeze) stops them where they are. A signal would tell
their parents, and shells act on that.
"""

from __future__ import annotations

import os
import time

from casemate.agent.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount

_ROOT = "/sys/fs/cgroup"
_OTHERS = f"{_ROOT}/others"
_KTHREADD = 2
"""The parent of all threads of the kernel, which need no stopping."""
_SECONDS = 5.0
"""Until all have stopped. One that the kernel cannot stop waits for a disk that does not answer."""
_LOOK_SECONDS = 0.001


def freeze() -> None:
    """Stop them; OSError, and none is stopped."""
    if os.getpid() != 1:
        raise OSError("programs of this guest belong to its init, not to its agent")
    if not os.path.exists(f"{_ROOT}/cgroup.procs"):
        mount("none", _ROOT, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.makedirs(_OTHERS, exist_ok=True)
    while _move():
        pass  # one that was missed may have started another meanwhile; children of those that were moved are moved too
    _write("1")
    end = time.monotonic() + _SECONDS
    while not _stopped():
        if time.monotonic() > end:
            thaw()
            raise OSError(f"programs did not stop within {_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS)


def thaw() -> None:
    """Let them go on; nothing to do where none was stopped."""
    if os.path.exists(_OTHERS):
        _write("0")


def _write(value: str) -> None:
    with open(f"{_OTHERS}/cgroup.freeze", "w", encoding="ascii") as file:
        file.write(value)


def _stopped() -> bool:
    with open(f"{_OTHERS}/cgroup.events", encoding="ascii") as file:
        return "frozen 1" in file.read()


def _move() -> int:
    """Put every program but ourselves into the group; how many were not there yet."""
    with open(f"{_ROOT}/cgroup.procs", encoding="ascii") as file:
        outside = [int(line) for line in file if int(line) not in (1, _KTHREADD)]
    moved = 0
    for pid in outside:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            if int(parent) == _KTHREADD or state == "Z":
                continue
            with open(f"{_OTHERS}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(pid))
            moved += 1
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return moved
