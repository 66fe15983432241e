"""A process that outlives the daemon: written down by pid and start time, so that the next daemon finds it again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from casemate.host.files import replace_file

_END_SECONDS = 10.0
"""How long a killed process may take to vanish: it has files and sockets to close."""


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot: with the pid it names one process for ever (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


class LastingProcess:
    """One such process, watched. Owns a pidfd; ``release`` closes it and lets the process go on."""

    def __init__(self, record: Path, pidfd: int, on_end: Callable[[], None]) -> None:
        self._record = record
        self._pidfd = pidfd
        self._on_end = on_end
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._ended)

    @classmethod
    def of(cls, record: Path, pid: int, on_end: Callable[[], None]) -> LastingProcess:
        """Write down and watch a process that was just started. ``on_end`` is called when it ends unasked."""
        pidfd = os.pidfd_open(pid)
        replace_file(record, f"{pid} {start_time(pid)}\n".encode(), mode=0o600)
        return cls(record, pidfd, on_end)

    @classmethod
    def find(cls, record: Path, on_end: Callable[[], None]) -> LastingProcess | None:
        """The process that an earlier daemon wrote down; None when it has ended."""
        try:
            pid, started = record.read_text().split()
            pidfd = os.pidfd_open(int(pid))
        except (OSError, ValueError):
            return None
        try:
            # Asked after the pidfd was opened: from then on the pid cannot pass to another process unseen.
            if start_time(int(pid)) == started:
                return cls(record, pidfd, on_end)
        except OSError:
            pass
        os.close(pidfd)
        return None

    def _ended(self) -> None:
        self.release()
        self._record.unlink(missing_ok=True)
        self._gone.set()
        self._on_end()

    async def kill(self) -> None:
        """End it; returns when it is gone. ``on_end`` is not called."""
        self._on_end = lambda: None
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        async with asyncio.timeout(_END_SECONDS):
            await self._gone.wait()

    def release(self) -> None:
        """Stop watching; the process goes on. No-op the second time, and when it has ended."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
