"""Statistics of running qubes as a stream: each ``stats_interval`` all are sampled once, for all subscribers.

The wire room is another process, so figures of the network are not in a subscriber's first burst, but in all others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence

from casemate.api.events import MAX_SUBSCRIPTIONS, FrameSink, Subscription, Visible
from casemate.api.parts import Network, States
from casemate.store.store import Store
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError
from casemate.wire.events import Connected, NetworkStatistics, Statistics

log = logging.getLogger(__name__)


class Stats:
    """All subscribers of statistics. Nothing is sampled while there are none."""

    def __init__(self, store: Store, states: States, network: Network) -> None:
        self._store = store
        self._states = states
        self._network = network
        self._subscribers: list[Subscription] = []
        self._task: asyncio.Task[None] | None = None
        self._before: dict[str, tuple[float, int]] = {}

    def add(self, transport: FrameSink, dest: str, visible: Visible = None) -> Subscription:
        """A new subscriber; its first burst comes at once."""
        self._subscribers = [s for s in self._subscribers if not s.gone()]
        if len(self._subscribers) >= MAX_SUBSCRIPTIONS:
            raise CasemateError(f"There are {MAX_SUBSCRIPTIONS} subscribers of statistics already")
        subscription = Subscription(transport, dest, visible)
        subscription.send_all(Connected())
        self._subscribers.append(subscription)
        for event in self.sample():
            if subscription.wants(event.subject):
                subscription.send_all(event)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())
        return subscription

    def discard(self, subscription: Subscription) -> None:
        """A subscriber is gone."""
        subscription.closed = True
        if subscription in self._subscribers:
            self._subscribers.remove(subscription)

    def close(self) -> None:
        """End all streams."""
        if self._task is not None:
            self._task.cancel()
        for subscription in self._subscribers:
            subscription.close()
        self._subscribers.clear()

    async def _run(self) -> None:
        while self._subscribers:
            await asyncio.sleep(self._store.snapshot().stats_interval)
            carried = await self._carried()
            self._subscribers = [s for s in self._subscribers if not s.gone()]
            for event in (*self.sample(), *carried):
                for subscription in list(self._subscribers):
                    if subscription.wants(event.subject):
                        subscription.send_all(event)

    async def _carried(self) -> Sequence[NetworkStatistics]:
        try:
            return await self._network.statistics()
        except CasemateError as error:
            log.warning("statistics of the network: %s", error)  # the room is being started anew
            return ()

    def sample(self) -> list[Statistics]:
        """An event for the host and each running qube, as things are now."""
        system, now, found = self._store.snapshot(), time.monotonic(), []
        states = self._states.all()
        before, self._before = self._before, {}
        for name in sorted(states):
            domain, machine = system.domains.get(name), states[name]
            if domain is None:
                continue
            vcpus = max(1, domain.vcpus)
            used = self._usage(name, now, machine.cpu_time_ns, vcpus, before)
            found.append(_statistics(name, machine.memory_kib, machine.cpu_time_ns // 1_000_000, used, vcpus))
        times, vcpus = os.times(), os.cpu_count() or 1
        spent = int((times.user + times.system) * 1e9)
        used = self._usage(ADMIN, now, spent, vcpus, before)
        found.insert(0, _statistics(ADMIN, _resident_kib(), spent // 1_000_000, used, vcpus))
        return found

    def _usage(self, name: str, now: float, spent: int, vcpus: int, before: dict[str, tuple[float, int]]) -> int:
        then, earlier = before.get(name, (now, spent))
        self._before[name] = (now, spent)
        return max(0, min(100, int((spent - earlier) / 1e7 / (now - then) / vcpus))) if now > then else 0


def _statistics(name: str, memory_kib: int, cpu_ms: int, usage: int, vcpus: int) -> Statistics:
    # The guest is not asked what it makes of its memory, so all four figures are what it was given.
    return Statistics(name, memory_kib, memory_kib, memory_kib, memory_kib, cpu_ms, usage, vcpus)


def _resident_kib() -> int:
    """What this daemon itself takes: the host's other memory is no qube's."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (os.sysconf("SC_PAGESIZE") >> 10)
