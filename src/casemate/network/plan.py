"""What the network of running qubes should be, computed from the store: a value that others make so (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from casemate.host.hypervisor import Nic
from casemate.host.room.links import Tap
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.model.uplinks import PASTA, Uplink, static_of, uplink_of
from casemate.wire.errors import ValueInvalidError
from casemate.wire.firewall import Rule

SERVED_MAC = "fe:ff:ff:ff:ff:ff"
"""What a net qube's interface towards the qubes that it serves has, and what they have as their gateway's. The same on
every wire, as in Qubes OS: a wire has two ends, so nobody needs to ask for an address."""

INBOUND_FEATURE = "net.inbound"
"""Feature of a qube: ``1`` lets its net qube open connections to it. Else only answers pass."""


def upstream_tap(qid: int) -> str:
    """The tap of a qube's interface towards its net qube or uplink. A qid is never used twice, so neither is this."""
    return f"u{qid}"


def served_tap(qid: int) -> str:
    """The tap of a net qube's interface towards the qubes that it serves."""
    return f"d{qid}"


def uplink_tap(qid: int) -> str:
    """The interface of a net qube's uplink: pasta makes it, or it shares a card. A card that was moved into the room
    keeps its own name; its rules have this one."""
    return f"x{qid}"


@dataclass(frozen=True, slots=True)
class Way:
    """The uplink by a card that a running qube has now."""

    uplink: Uplink
    interface: str
    """What stands for it in the room."""


@dataclass(frozen=True, slots=True)
class Lan:
    """Where a wire goes that leaves by a card of this host: others are there, with addresses that nobody here gave."""

    interface: str
    """What stands in the room for the card."""
    ip: str | None
    """The address that the user gave to the net qube; None: it asks for one by DHCP, so any from outside may be its."""


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
    lan: Lan | None = None
    """The network outside, where the wire goes to one by a card."""

    @property
    def tap(self) -> str:
        """The tap of the qube's end."""
        return upstream_tap(self.qid)

    @property
    def exit(self) -> str | None:
        """The interface that frames of the qube leave by."""
        return self.peer if self.lan is None else self.lan.interface


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
    """Whether the qube is to be given a network outside directly."""
    return wanted_uplink(domain) is not None


def wanted_uplink(domain: Domain) -> Uplink | None:
    """The uplink that the qube is to have."""
    return uplink_of(domain.features) if domain.provides_network and domain.netvm is None else None


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
    ways: Mapping[str, Way],
    rules: Callable[[Domain], Sequence[Rule] | None],
) -> Plan:
    """The network of the qubes in ``plugged``, which run or are about to.

    ``uplinks`` are the qubes whose pasta is there, ``ways`` has those whose card is there. ``rules`` gives a qube's
    firewall; None when it cannot be read: then nothing of the qube passes.
    """
    wires, served = [], []
    for name, has in sorted(plugged.items()):
        domain = system.domains.get(name)
        if domain is None:
            continue
        if has.served:
            served.append(Served(name, domain.qid, domain.ip or "", domain.ip6))
        if has.mac is not None:
            peer, lan = _other_end(domain, plugged, name in uplinks, ways.get(name))
            wires.append(_wire(domain, has.mac, peer, lan, rules(domain)))
    return Plan(tuple(wires), tuple(served))


def _other_end(
    domain: Domain, plugged: Mapping[str, Ends], pasta: bool, way: Way | None
) -> tuple[str | None, Lan | None]:
    """Where a qube's wire goes; None while nothing is there. An uplink other than the one that the qube was started
    with is nothing: its interface has the MAC address of that one."""
    netvm = domain.netvm
    if netvm is not None:
        return (served_tap(netvm.qid) if netvm.name in plugged and plugged[netvm.name].served else None), None
    uplink = wanted_uplink(domain)
    if uplink is not None and uplink.kind == PASTA:
        return (uplink_tap(domain.qid) if pasta else None), None
    if way is None or way.uplink != uplink:
        return None, None
    try:
        static = static_of(domain.features)
    except ValueInvalidError:
        return None, None
    return uplink_tap(domain.qid), Lan(way.interface, None if static is None else str(static.address.ip))


def _wire(domain: Domain, mac: str, peer: str | None, lan: Lan | None, rules: Sequence[Rule] | None) -> Wire:
    return Wire(
        name=domain.name,
        qid=domain.qid,
        mac=mac,
        ip=domain.ip or "",
        seen_ip=(domain.visible_ip if lan is None else None) or domain.ip or "",
        ip6=domain.ip6 if lan is None else None,
        peer=peer,
        uplink=domain.netvm is None,
        inbound=domain.features.get(INBOUND_FEATURE) == "1",
        rules=tuple(rules or ()),
        lan=lan,
    )
