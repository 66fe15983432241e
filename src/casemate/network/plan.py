"""What the network of running qubes should be, computed from the store: a value that others make so (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from casemate.host.hypervisor import Nic
from casemate.host.room.links import Tap
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.wire.firewall import Rule

SERVED_MAC = "fe:ff:ff:ff:ff:ff"
"""What a net qube's interface towards the qubes that it serves has, and what they have as their gateway's. The same on
every wire, as in Qubes OS: a wire has two ends, so nobody needs to ask for an address."""

UPLINK_FEATURE = "net.uplink"
"""Feature of a net qube without a net qube of its own: ``pasta`` gives it this host's way to the network."""
INBOUND_FEATURE = "net.inbound"
"""Feature of a qube: ``1`` lets its net qube open connections to it. Else only answers pass."""


def upstream_tap(qid: int) -> str:
    """The tap of a qube's interface towards its net qube or uplink. A qid is never used twice, so neither is this."""
    return f"u{qid}"


def served_tap(qid: int) -> str:
    """The tap of a net qube's interface towards the qubes that it serves."""
    return f"d{qid}"


def uplink_tap(qid: int) -> str:
    """The interface that pasta makes for a net qube."""
    return f"x{qid}"


@dataclass(frozen=True, slots=True)
class Wire:
    """One qube's wire: from its interface to what serves it, with all that may pass."""

    name: str
    qid: int
    mac: str
    ip: str
    """The qube's own IPv4 address, as the network sees it."""
    seen_ip: str
    """The address that the qube believes it has: another one where it is hidden (``net.fake-ip``)."""
    ip6: str | None
    peer: str | None
    """The tap at the other end; None while what serves the qube does not run: then nothing passes."""
    uplink: bool
    """Whether the wire goes to this host's network, not to another qube."""
    inbound: bool
    rules: tuple[Rule, ...]
    """Traffic that none of them matches is dropped."""

    @property
    def tap(self) -> str:
        """The tap of the qube's end."""
        return upstream_tap(self.qid)


@dataclass(frozen=True, slots=True)
class Served:
    """A net qube's interface towards the qubes that it serves."""

    name: str
    qid: int
    ip: str
    ip6: str | None

    @property
    def tap(self) -> str:
        """The tap."""
        return served_tap(self.qid)


@dataclass(frozen=True, slots=True)
class Plan:
    """The network of all qubes that are plugged in."""

    wires: tuple[Wire, ...] = ()
    served: tuple[Served, ...] = ()

    def taps(self, uids: Mapping[int, int | None]) -> list[Tap]:
        """The taps that must be there; ``uids`` gives the user that runs the QEMU of a qube, by qid."""
        ends: list[Wire | Served] = [*self.wires, *self.served]
        return [Tap(end.tap, uids.get(end.qid)) for end in ends]


def has_uplink(domain: Domain) -> bool:
    """Whether the qube is to be given this host's network directly."""
    return domain.provides_network and domain.netvm is None and domain.features.get(UPLINK_FEATURE) == "pasta"


def has_wire(domain: Domain) -> bool:
    """Whether the qube has an interface towards a net qube or an uplink."""
    return domain.netvm is not None or has_uplink(domain)


@dataclass(frozen=True, slots=True)
class Ends:
    """The interfaces that a qube's machine has now, whatever the store says meanwhile."""

    mac: str | None
    """Address of the one towards its net qube; None while it has none."""
    served: bool
    """Whether it has one towards qubes that it serves."""


def ends(domain: Domain) -> Ends:
    """What the qube's machine starts with."""
    return Ends(domain.mac.lower() if has_wire(domain) else None, domain.provides_network)


def nics(domain: Domain) -> tuple[Nic, ...]:
    """The same as interfaces of a machine."""
    has = ends(domain)
    found = []
    if has.mac is not None:
        found.append(Nic(upstream_tap(domain.qid), has.mac))
    if has.served:
        found.append(Nic(served_tap(domain.qid), SERVED_MAC, fixed=True))
    return tuple(found)


def make_plan(
    system: System,
    plugged: Mapping[str, Ends],
    uplinks: frozenset[str],
    rules: Callable[[Domain], Sequence[Rule] | None],
) -> Plan:
    """The network of the qubes in ``plugged``, which run or are about to.

    ``uplinks`` are the qubes whose uplink is there. ``rules`` gives a qube's firewall; None when it cannot be read:
    then nothing of the qube passes.
    """
    wires, served = [], []
    for name, has in sorted(plugged.items()):
        domain = system.domains.get(name)
        if domain is None:
            continue
        if has.served:
            served.append(Served(name, domain.qid, domain.ip or "", domain.ip6))
        if has.mac is not None:
            wires.append(_wire(domain, has.mac, plugged, name in uplinks, rules(domain)))
    return Plan(tuple(wires), tuple(served))


def _wire(domain: Domain, mac: str, plugged: Mapping[str, Ends], uplink: bool, rules: Sequence[Rule] | None) -> Wire:
    netvm = domain.netvm
    if netvm is None:
        peer = uplink_tap(domain.qid) if uplink and has_uplink(domain) else None
    else:
        peer = served_tap(netvm.qid) if netvm.name in plugged and plugged[netvm.name].served else None
    return Wire(
        name=domain.name,
        qid=domain.qid,
        mac=mac,
        ip=domain.ip or "",
        seen_ip=domain.visible_ip or domain.ip or "",
        ip6=domain.ip6,
        peer=peer,
        uplink=netvm is None,
        inbound=domain.features.get(INBOUND_FEATURE) == "1",
        rules=tuple(rules or ()),
    )
