"""How many frames that move no data a qube may send: a token bucket, and when it has been empty for too long."""

from __future__ import annotations

import time

FRAMES_PER_SECOND = 1000.0
"""Limit of a qube's channel (a second): frames that move no data (opened, ended, aborted streams, small grants)."""
FRAMES_BURST = 5000.0
"""Limit of a qube's channel: frames of that kind at once."""
FLOOD_SECONDS = 10.0
"""Limit of a qube's channel (seconds): time that a qube may be over that; then the channel is closed."""


class FrameBudget:
    """The account of one channel, made with it. Frames beyond the burst are paid by waiting."""

    def __init__(self) -> None:
        self._tokens = FRAMES_BURST
        self._at = time.monotonic()
        self._over_since = 0.0

    def spend(self, frames: int) -> float:
        """Take ``frames`` off the account; the seconds to wait until it is balanced again."""
        now = time.monotonic()
        self._tokens = min(FRAMES_BURST, self._tokens + (now - self._at) * FRAMES_PER_SECOND) - frames
        self._at = now
        if self._tokens >= 0:
            if self._tokens > FRAMES_BURST / 2:
                self._over_since = 0.0
            return 0.0
        if not self._over_since:
            self._over_since = now
        return min(-self._tokens / FRAMES_PER_SECOND, FLOOD_SECONDS)

    @property
    def exhausted(self) -> bool:
        """True when the account has been overdrawn, with no more than short pauses, for FLOOD_SECONDS."""
        return bool(self._over_since) and self._at - self._over_since > FLOOD_SECONDS
