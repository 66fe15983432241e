"""Tells of programs that ended: SIGCHLD as an event of the loop."""

from __future__ import annotations

import os
import signal

from casemate.streams.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Children:
    """The children of this process, all of which are ours; one per process."""

    def __init__(self, loop: Loop) -> None:
        self._ended: dict[int, Callable[[int], None]] = {}
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._wakeup = reading
        loop.watch(reading, READ, lambda _mask: self._reap())

    def add(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call ``ended`` with what qrexec tells of it: the exit status, or 128 and the signal."""
        self._ended[pid] = ended

    def _reap(self) -> None:
        try:
            os.read(self._wakeup, 4096)
        except BlockingIOError:
            pass
        self.look()

    def look(self) -> None:
        """Tell of those that have ended by now.

        When the last output of a program ends, the program mostly has, too. Who looks then has both to tell in one
        message, without being woken once more."""
        while True:  # those too that nobody asked for: as process 1 we get everybody's orphans
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._ended.pop(pid, None)
            if ended is not None:
                ended(exit_status(status))


def exit_status(status: int) -> int:
    """What qrexec tells of a wait status: the exit status, or 128 and the signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
