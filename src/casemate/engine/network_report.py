"""What people see of the network: every qube with its way out, its rules, its traffic, what was dropped and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from casemate.engine.firewall import Firewalls
from casemate.engine.network import Network
from casemate.engine.states import States
from casemate.host.hypervisor import PowerState
from casemate.host.own_addresses import own_addresses
from casemate.model.domain import Domain
from casemate.network.explain import Place, explain
from casemate.network.guard import DROPS
from casemate.network.plan import has_uplink, has_wire, served_tap, uplink_tap, upstream_tap, wanted_uplink
from casemate.store.store import Store
from casemate.wire.events import NetworkStatistics


class NetworkReport:
    """Reads the store, the room's plan and its counters, at each question."""

    def __init__(self, store: Store, network: Network, firewalls: Firewalls, states: States) -> None:
        self._store = store
        self._network = network
        self._firewalls = firewalls
        self._states = states

    @property
    def why(self) -> str:
        """Why this host has no network for qubes; empty where it has."""
        return self._network.wires.why

    async def report(self) -> dict[str, Any]:
        """``{"why": …, "qubes": [{"name": …, …}]}``, the qubes in order of names."""
        wires = self._network.wires
        traffic, counters = await wires.traffic(), await wires.counters()
        joined = {wire.name: wire.peer is not None for wire in self._network.plan.wires}
        qubes = []
        for domain in self._store.snapshot().domains.ordered():
            if not domain.has("netvm"):
                continue
            taps, of = _taps(domain), self._interfaces(domain)
            rules = self._firewalls.rules_or_none(domain) if has_wire(domain) else []
            qubes.append(
                {
                    "name": domain.name,
                    "label": domain.label.color,
                    "state": str(self._states.of(domain.name).value),
                    "netvm": domain.netvm.name if domain.netvm is not None else None,
                    "provides_network": domain.provides_network,
                    "uplink": has_uplink(domain),
                    "uplink_by": None if (uplink := wanted_uplink(domain)) is None else str(uplink),
                    "uplink_missing": self._network.ways.cards.missing.get(domain.name, ""),
                    "ip": domain.ip,
                    "ip6": domain.ip6,
                    "rules": None if rules is None else len(rules),
                    "plugged": domain.name in joined,
                    "joined": joined.get(domain.name, False),
                    "traffic": {tap: asdict(traffic[of[tap]]) for tap in taps if of[tap] in traffic},
                    "dropped": _dropped(taps, counters),
                }
            )
        return {"why": wires.why, "qubes": qubes}

    async def statistics(self) -> list[NetworkStatistics]:
        """What each interface of a qube has carried until now."""
        wires = self._network.wires
        traffic, counters = await wires.traffic(), await wires.counters()
        found = []
        for domain in self._store.snapshot().domains.ordered():
            of = self._interfaces(domain)
            taps = [tap for tap in _taps(domain) if of[tap] in traffic] if domain.has("netvm") else []
            dropped = _dropped(taps, counters)
            for tap in taps:
                one, causes = traffic[of[tap]], dropped.get(tap, {})
                found.append(
                    NetworkStatistics(
                        domain.name, tap, one.sent_bytes, one.sent_packets, one.received_bytes, one.received_packets,
                        sum(causes.values()), " ".join(f"{cause}={packets}" for cause, packets in causes.items()),
                    )
                )  # fmt: skip
        return found

    def _interfaces(self, domain: Domain) -> dict[str, str]:
        """The interface in the room that each name of a tap stands for: a card that was moved in has its own."""
        way = self._network.ways.cards.running().get(domain.name)
        return {tap: tap for tap in _taps(domain)} | ({uplink_tap(domain.qid): way.interface} if way else {})

    def cards(self) -> list[str]:
        """The cards that running net qubes have, and those that they miss, in words; in order of names."""
        found = {name: f"{name} has {way.uplink}" for name, way in self._network.ways.cards.running().items()}
        found |= {name: f"{name} has no network: {why}" for name, why in self._network.ways.cards.missing.items()}
        return [text for _name, text in sorted(found.items())]

    async def enforce(self) -> None:
        """Have the newest rules hold on this host."""
        await self._network.enforce()

    def explain(self, domain: Domain, place: Place) -> list[dict[str, Any]]:
        """The way from a qube to a place, step by step."""
        four, six = own_addresses()

        def runs(name: str) -> bool:
            return self._states.of(name) is PowerState.RUNNING

        steps = explain(domain, place, self._firewalls.rules_or_none, runs, frozenset((*four, *six)), time.time())
        return [asdict(step) for step in steps]


def _taps(domain: Domain) -> tuple[str, ...]:
    """All interfaces that the host may have for a qube."""
    return upstream_tap(domain.qid), served_tap(domain.qid), uplink_tap(domain.qid)


def _dropped(taps: Sequence[str], counters: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    """Packets by tap and cause, without those of which there were none."""
    found: dict[str, dict[str, int]] = {}
    for tap in taps:
        for cause in DROPS:
            packets = counters.get(f"{tap}-{cause}", (0, 0))[0]
            if packets:
                found.setdefault(tap, {})[cause] = packets
    return found
