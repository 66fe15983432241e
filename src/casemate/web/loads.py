"""What a running qube has taken of the host over the last minutes: memory, processor, network."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

POINTS = 40
"""How many values of a load are kept for its line: two minutes at three seconds each."""
_GONE_SECONDS = 15.0
"""After that long without news an interface is taken to be gone: news comes every few seconds."""


class Load:
    """Values of one qube, oldest first; made from the events of ``admin.vm.Stats``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.memory: deque[int] = deque(maxlen=POINTS)
        """MiB."""
        self.cpu: deque[int] = deque(maxlen=POINTS)
        """Per cent of all its processors."""
        self.network: deque[int] = deque(maxlen=POINTS)
        """Bytes a second, sent and received, over all its interfaces."""
        self._interfaces: dict[str, tuple[float, int, float]] = {}
        """By interface: when it was counted last, bytes then, bytes a second before that."""

    def machine(self, details: Mapping[str, str]) -> None:
        """Take the details of an event ``vm-stats``."""
        self.memory.append(int(details.get("memory_kb", "0")) >> 10)
        self.cpu.append(min(100, int(details.get("cpu_usage", "0"))))
        oldest = self._clock() - _GONE_SECONDS
        self._interfaces = {name: seen for name, seen in self._interfaces.items() if seen[0] > oldest}
        self.network.append(int(sum(rate for _, _, rate in self._interfaces.values())))

    def traffic(self, details: Mapping[str, str]) -> None:
        """Take the details of an event ``vm-network-stats``. A counter that has become less is that of a new tap."""
        now, name = self._clock(), details.get("interface", "")
        count = int(details.get("sent_bytes", "0")) + int(details.get("received_bytes", "0"))
        then, before, rate = self._interfaces.get(name, (now, count, 0.0))
        if now > then:
            rate = max(0, count - before) / (now - then)
        self._interfaces[name] = (now, count, rate)
