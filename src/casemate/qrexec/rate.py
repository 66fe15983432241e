"""How often something may happen, for each of many names: so many at once, then so many a second."""

from __future__ import annotations

import time
from collections.abc import Callable

_MOST_NAMES = 4096


class Rate:
    """Token buckets by name. Names that have been quiet are forgotten."""

    def __init__(self, per_second: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._at_once = at_once
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._held: dict[str, int] = {}

    def allows(self, name: str) -> bool:
        """Whether it may happen now; what may not is counted."""
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
        """How often it did not happen since this was last asked."""
        return self._held.pop(name, 0)
