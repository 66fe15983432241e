"""Limits how often something may happen, per name: a number at once, then a number per second (token bucket)."""

from __future__ import annotations

import time
from collections.abc import Callable

_MOST_NAMES = 4096
"""Names that are remembered. The longest unused one goes first; it would be full again in any case."""


class Rate:
    """Token buckets by name."""

    def __init__(self, per_second: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._at_once = at_once
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._held: dict[str, int] = {}

    def allows(self, name: str) -> bool:
        """Take a token; False, and counted, when there is none."""
        now = self._clock()
        left, since = self._buckets.pop(name, (self._at_once, now))
        left = min(self._at_once, left + (now - since) * self._per_second)
        good = left >= 1
        if len(self._buckets) >= _MOST_NAMES:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[name] = (left - 1 if good else left, now)
        if not good:
            self._held[name] = self._held.get(name, 0) + 1
        return good

    def held_back(self, name: str) -> int:
        """How often ``allows`` was False since this was last called."""
        return self._held.pop(name, 0)
