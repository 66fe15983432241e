"""The deadline of a message that has begun: a peer that sends half of one must send the rest."""

from __future__ import annotations

import time

from casemate.streams.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HALF_FRAME_SECONDS = 30.0
"""Limit of a qube's channel (seconds): from the first byte of a frame or message to its last."""
VARIABLE = "CASEMATE_HALF_FRAME_SECONDS"
"""Environment of casemated, casemate-qrexecd and the agent over vchan: another number of seconds."""


def configured(environ: Mapping[str, str]) -> float:
    """The deadline as the environment has it; HALF_FRAME_SECONDS where it says nothing that is a positive number."""
    try:
        found = float(environ.get(VARIABLE, ""))
    except ValueError:
        return HALF_FRAME_SECONDS
    return found if 0 < found < 3600 else HALF_FRAME_SECONDS


class HalfFrame:
    """Calls ``late`` once when a message that has begun is not complete within ``seconds``. One for each connection.

    The deadline counts from the first byte of a message, so that single bytes do not put it off. Its one timer is set
    when a message is cut and looks again when it is due: to cancel and set one with each read would cost more than to
    read. Time in which the owner does not read is not the peer's; see ``stop``.
    """

    __slots__ = ("_armed", "_late", "_loop", "_seconds", "_since", "_whole")

    def __init__(self, loop: Loop, seconds: float, late: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._late = late
        self._since = 0.0  # when the present message began; 0: none has
        self._whole = -1
        self._armed = False

    def read(self, cut: bool, whole: int) -> None:
        """Something was read: whether a message is cut now, and how many have been complete so far."""
        if not cut:
            self._since = 0.0
        elif not self._since or whole != self._whole:
            self._since = time.monotonic()
            self._whole = whole
            if not self._armed:
                self._armed = True
                self._loop.later(self._seconds, self._due)

    def stop(self) -> None:
        """The connection has ended, or is not read from until the next ``read``."""
        self._since = 0.0

    def _due(self) -> None:
        self._armed = False
        if not self._since:
            return
        left = self._since + self._seconds - time.monotonic()
        if left > 0:
            self._armed = True
            self._loop.later(left, self._due)
        else:
            self._since = 0.0
            self._late()
