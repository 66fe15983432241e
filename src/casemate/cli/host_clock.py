"""The clock of this host as the tools see it: its time, whether a time service keeps it, and how it is set."""

from __future__ import annotations

import ctypes
import os
import time

_TIMEX_BYTES = 256
"""Room for the kernel's struct timex (adjtimex(2)); it has 208 bytes on 64-bit systems."""
_UNSYNCHRONISED = 5  # TIME_ERROR


class HostClock:
    """The real-time clock of the running kernel."""

    def now(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def is_kept(self) -> bool:
        """Whether a time service, such as chrony, keeps the clock right: the kernel knows (adjtimex(2))."""
        nothing_to_set = ctypes.create_string_buffer(_TIMEX_BYTES)
        return ctypes.CDLL(None).adjtimex(nothing_to_set) not in (-1, _UNSYNCHRONISED)

    def is_ours(self) -> bool:
        """Whether this process may be expected to set it."""
        return os.geteuid() == 0

    def set(self, moment: int) -> None:
        """Set the clock, in nanoseconds since 1970, and the one that runs while the host is off, where there is one.

        OSError when this process may not.
        """
        import shutil  # here, because no other run of a tool needs them
        import subprocess

        time.clock_settime_ns(time.CLOCK_REALTIME, moment)
        hwclock = shutil.which("hwclock", path="/usr/sbin:/sbin:/usr/bin")
        if hwclock is not None:
            subprocess.run([hwclock, "--systohc"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
