"""Whether the qube's agent answers: a stream is opened that it gives up at once, and that is the sign of life."""

from __future__ import annotations

import time

from casemate.streams.channel import GIVEN_UP
from casemate.streams.loop import Loop
from casemate.streams.mux_stream import HIGH_WATER
from casemate.streams.stream import Handler
from casemate.wire.errors import ProtocolError
from casemate.wire.link import PING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.streams.channel import Channel

_CONSOLE = (
    (b"Out of memory", "its memory is full"),
    (b"oom-kill", "its memory is full"),
    (b"Kernel panic", "its kernel has panicked"),
    (b"soft lockup", "its processors are stuck"),
    (b"blocked for more than", "a program in it waits for a disk that does not answer"),
)
"""What a kernel writes on its console, and what that means. A console is what its qube says: nothing else of it is
passed on."""
_CONSOLE_TAIL = 8192
"""Bytes of the console, from its end, in which a reason is looked for."""


def reason(console: bytes) -> str:
    """What the end of a console says about a guest that does not answer; empty for nothing."""
    tail = console[-_CONSOLE_TAIL:]
    return next((why for sign, why in _CONSOLE if sign in tail), "")


class Liveness(Handler):
    """Asks the agent one question at a time. Made by the link for all of its life."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._channel: Channel | None = None
        self._asked_at = 0.0  # when the question was asked that has no answer yet; 0: there is none
        self._open = False
        self._tell: list[Callable[[], None]] = []

    @property
    def silent(self) -> float:
        """Seconds since a question that has no answer yet."""
        return time.monotonic() - self._asked_at if self._asked_at else 0.0

    def ask(self, channel: Channel, answered: Callable[[], None] = lambda: None) -> None:
        """Ask the agent on this channel, unless a question waits already; ``answered`` is called when it answers."""
        self._tell.append(answered)
        if channel is not self._channel:
            self._channel = channel  # the question of an older session has no answer any more
            self._asked_at = 0.0
            self._open = False
        if not self._asked_at:
            self._asked_at = time.monotonic()
        self._put()

    def _put(self) -> None:
        channel = self._channel
        if self._open or channel is None or not self._asked_at or channel.mux.pending >= HIGH_WATER:
            return  # a guest that does not read gets nothing more; that is no answer either
        try:
            channel.open(PING, self)
            self._open = True
        except ProtocolError:
            pass  # no session now

    def on_abort(self, why: str) -> None:
        self._open = False
        if why != GIVEN_UP:
            return  # the session has ended: that is no answer
        self._asked_at = 0.0
        tell, self._tell = self._tell, []
        for answered in tell:
            answered()
