"""Has the agent stop all other programs of its guest, or let them go on, before and after the guest is copied."""

from __future__ import annotations

import time

from casemate.streams.loop import Loop
from casemate.streams.stream import Handler
from casemate.wire.errors import ProtocolError
from casemate.wire.link import DONE, FREEZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.streams.channel import Channel
    from casemate.streams.mux_stream import MuxStream

FREEZE_SECONDS = 10.0
"""How long an agent has to answer. It gives up by itself after half of that."""


class Freezing(Handler):
    """One request and its answer, which is told exactly once."""

    def __init__(self, loop: Loop, channel: Channel, on: bool, tell: Callable[[bool, str], None]) -> None:
        """``tell(done, why)``: whether the agent has done it, and why not."""
        self._tell = tell
        self._told = False
        self._stream: MuxStream | None = None
        late = f"its agent did not do it within {FREEZE_SECONDS:g} s"
        self._timer = loop.later(FREEZE_SECONDS, lambda: self._answer(False, late))
        try:
            self._stream = channel.open(FREEZE + (b"1" if on else f"0{time.time():.3f}".encode()), self)
        except ProtocolError as error:
            self._answer(False, str(error))

    def on_data(self, data: memoryview) -> None:
        """The answer."""
        done = bytes(data) == DONE
        self._answer(done, "" if done else "its agent said something else")

    def on_abort(self, why: str) -> None:
        """The agent gave the stream up, or the session has ended."""
        self._answer(False, f"its agent cannot do it: {why}")

    def on_closed(self) -> None:
        """The agent ended the stream without a word."""
        self._answer(False, "its agent said nothing")

    def _answer(self, done: bool, why: str) -> None:
        if self._told:
            return
        self._told = True
        self._timer.cancel()
        if self._stream is not None:
            self._stream.abort()
        self._tell(done, why)
