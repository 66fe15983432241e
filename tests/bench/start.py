"""A start through Casemate and libvirt beside one of bare QEMU, and where the time goes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench import caller

_INIT = re.compile(rb"\[ *(\d+\.\d+)\] Run /init as init process")
_MOUNTED = re.compile(rb"\[ *(\d+\.\d+)\] EXT4-fs \(vdb\): mounted")


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds of one start. The last three are parts of ``total``; the guest's kernel tells them, None if it does not.

    ``before``: until the guest's kernel has its clock (tools, libvirt, QEMU, firmware, unpacking the kernel).
    ``kernel``: until its first program. ``init``: until the private disk is mounted. The rest: the agent.
    """

    total: float
    before: float
    kernel: float | None
    init: float | None

    @property
    def agent(self) -> float | None:
        """From the last mount until the agent has answered."""
        if self.kernel is None or self.init is None:
            return None
        return self.total - self.before - self.kernel - self.init


def parts(link: Path, begin: float, total: float) -> Start:
    """What a guest that has just started says about its start; ``begin`` is in ``time.monotonic``."""
    asked = time.monotonic()
    uptime = float(caller.call(link, ["cat", "/proc/uptime"]).split()[0])
    now = (asked + time.monotonic()) / 2
    log = caller.call(link, ["dmesg"], user="root")
    ran, mounted = _INIT.search(log), _MOUNTED.search(log)
    kernel = float(ran[1]) if ran else None
    init = float(mounted[1]) - float(ran[1]) if ran and mounted else None
    return Start(total, now - uptime - begin, kernel, init)
