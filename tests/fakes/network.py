"""The network without machines: the real report and explanation, over wires of which a test says the traffic."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from casemate.engine.firewall import Firewalls
from casemate.engine.network_report import NetworkReport
from casemate.engine.states import States
from casemate.host.room.links import Traffic
from casemate.model.domain import Domain
from casemate.network.explain import Place
from casemate.network.plan import upstream_tap
from casemate.store.store import Store
from casemate.wire import events as ev


@dataclass(frozen=True)
class _Wire:
    name: str
    peer: str | None


class FakeNetwork:
    """What the API reaches of the network."""

    def __init__(self, store: Store, states: States, firewalls: Firewalls) -> None:
        self._store = store
        self._states = states
        self.why = ""
        """Why there is no network; a test may say."""
        self.carried: list[ev.NetworkStatistics] = []
        """What the statistics say, by a test."""
        self.missing: dict[str, str] = {}
        """Why a net qube has no card now, by a test."""
        self._traffic: dict[str, Traffic] = {}
        self._dropped: dict[str, tuple[int, int]] = {}
        self._report = NetworkReport(store, self, firewalls, states)  # type: ignore[arg-type]  # this is its network too

    def carry(self, name: str, sent: int, received: int, dropped: int = 0) -> None:
        """Let a qube have sent and received so many bytes, and its firewall have dropped so many packets."""
        tap = upstream_tap(self._store.snapshot().domains[name].qid)
        self._traffic[tap] = Traffic(sent, sent // 1000, received, received // 1000, 0)
        self._dropped[f"{tap}-firewall"] = (dropped, dropped * 100)

    # -- what the report asks of the network

    @property
    def wires(self) -> FakeNetwork:
        return self

    @property
    def ways(self) -> SimpleNamespace:
        """No net qube has a card, but for those that a test says miss theirs."""
        return SimpleNamespace(cards=SimpleNamespace(running=dict, missing=self.missing))

    async def traffic(self) -> dict[str, Traffic]:
        return self._traffic

    async def counters(self) -> dict[str, tuple[int, int]]:
        return self._dropped

    @property
    def plan(self) -> SimpleNamespace:
        """A wire of each qube that runs, joined where its net qube runs."""
        running = self._states.all()
        domains = [d for d in self._store.snapshot().domains.ordered() if d.name in running and d.has("netvm")]
        wires = [_Wire(d.name, "d" if d.netvm is not None and d.netvm.name in running else None) for d in domains]
        return SimpleNamespace(wires=wires)

    # -- what the API asks

    async def report(self) -> dict[str, Any]:
        return await self._report.report()

    async def statistics(self) -> list[ev.NetworkStatistics]:
        return self.carried

    async def enforce(self) -> None:
        pass

    def explain(self, domain: Domain, place: Place) -> list[dict[str, Any]]:
        return self._report.explain(domain, place)
