"""The nft rules of the wire room: what a plan allows, one part for each end of a wire (pure).

::

    tap u12 of a qube                     tap d3 of its net qube
      chain u12: guard (who it says it is)  chain d3: guard; by destination ─▶ chain r12
        ├ IPv4 ─▶ chain f12: its firewall   chain r12: no new connections to the qube ─ fwd ─▶ u12
        └ IPv6 ─▶ chain g12: its firewall
             └ accepted ─▶ chain w12: hide its address ─ fwd ─▶ d3

A packet that no rule forwards is dropped: base chains have policy drop, and falling off the end of a chain that was
jumped to means falling through the base chain. Every cause of a drop has a counter, named after the tap.

There is no table of connections, so a tightened rule holds at once, for connections that are open as well. Only what a
qube sends is judged by its firewall; what comes to it must be an answer. Of TCP that is what does not open a
connection, of ICMP answers and errors. UDP does not tell, so the datagrams that a qube sent are remembered (set
``s12``, ``t12`` for IPv6) and only what answers one passes; the set is the qube's own, so a flood fills nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from casemate.network import guard_lan
from casemate.network.parts import ARP_RATE, HOST_SET, NOWHERE, NOWHERE6, QUBES, QUBES6, Part, counted
from casemate.network.plan import SERVED_MAC, Plan, Served, Wire
from casemate.wire.nft import PROTOCOLS, arp_of, at_most, field, match, meta, network, one_of, rule_matches

if TYPE_CHECKING:
    from casemate.wire.nft import Expression

_ANSWERS = (("icmp", [0, 3, 11, 12]), ("icmpv6", [1, 2, 3, 4, 129]))
"""Types of ICMP that answer something: echo replies and errors (RFC 792, RFC 4443)."""
_DISCOVERY: Expression = {"range": [133, 137]}
"""Types of ICMPv6 from router solicitation to redirect (RFC 4861)."""
DROPS = ("mac", "type", "arp", "spoof", "nowhere", "firewall", "host", "full", "inbound")
"""Causes of a drop, each a counter ``TAP-CAUSE`` of every tap that it can happen on."""

_DROP: Expression = {"drop": None}


def parts(plan: Plan, reject: bool = True) -> dict[str, Part]:
    """All parts that a plan needs, by tap. ``reject``: whether this host's kernel can answer what it refuses."""
    found = {wire.tap: _qube_part(wire, reject) for wire in plan.wires}
    for served in plan.served:
        clients = [wire for wire in plan.wires if wire.peer == served.tap]
        found[served.tap] = _served_part(served, clients)
    for wire in plan.wires:
        if wire.uplink and wire.peer is not None:
            found[wire.peer] = _uplink_part(wire) if wire.lan is None else guard_lan.uplink_part(wire, wire.lan)
    return found


# -- what a qube sends


def _qube_part(wire: Wire, reject: bool) -> Part:
    tap, four, six = wire.tap, f"f{wire.qid}", f"g{wire.qid}"
    chains: dict[str, tuple[list[Expression], ...]] = {
        tap: (
            counted(tap, "mac", match(field("ether", "saddr"), wire.mac, "!=")),
            _other_kinds(tap, bool(wire.ip6)),
            *(_speaker(wire) if wire.lan is None else guard_lan.speaker(wire, wire.lan)),
            # Options of IPv4 (source routes among them) are used by nobody; what has none is 5 words long.
            counted(tap, "nowhere", match(field("ip", "hdrlength"), 5, "!=")),
            counted(tap, "nowhere", match(field("ip", "daddr"), one_of([network(n) for n in NOWHERE]))),
            # A server of DHCP: nobody asks, so an answer is an attack.
            counted(tap, "nowhere", match(field("udp", "sport"), 67)),
            *_pieces(tap),
            [match(field("ether", "type"), "ip"), {"jump": {"target": four}}],
            *_guard6(wire, six),
            counted(tap, "type"),
        ),
        four: (*_outgoing(wire), *_firewall(wire, 4, reject)),
        six: (*_outgoing6(wire), *_firewall(wire, 6, reject)) if wire.ip6 else (),
        f"w{wire.qid}": tuple(_forward(wire)),
        f"r{wire.qid}": tuple(_incoming(wire)),
    }
    causes = [f"{tap}-{cause}" for cause in DROPS]
    sets = {f"s{wire.qid}": ["ipv4_addr", "inet_service", "inet_service"]}
    if wire.ip6:
        sets[f"t{wire.qid}"] = ["ipv6_addr", "inet_service", "inet_service"]
    return Part(tap, chains, (*causes, f"{tap}-out", f"{tap}-in"), {}, sets)


def _speaker(wire: Wire) -> list[list[Expression]]:
    """Who may speak on a wire between qubes: its qube alone."""
    return [*_arp(wire), counted(wire.tap, "spoof", match(field("ip", "saddr"), wire.seen_ip, "!="))]


def _other_kinds(tap: str, six: bool) -> list[Expression]:
    """Frames of other kinds than a wire has. This must come first: of a tagged frame the kernel shows the packet in it
    as if there were no tag, to every comparison but this one."""
    kinds = ["ip", "arp", "ip6"] if six else ["ip", "arp"]
    return counted(tap, "type", match(field("ether", "type"), one_of(kinds), "!="))


def _arp(wire: Wire) -> list[list[Expression]]:
    """ARP about the qube's own address only, in its inner fields too, and slowly."""
    is_arp = match(field("ether", "type"), "arp")
    out: list[list[Expression]] = []
    if wire.peer is not None:
        out.append(
            [
                *arp_of(wire.mac),
                match(field("arp", "saddr ip"), wire.seen_ip),
                at_most(ARP_RATE),
                {"fwd": {"dev": wire.peer}},
            ]
        )
    return [*out, counted(wire.tap, "arp", is_arp)]


def _guard6(wire: Wire, chain: str) -> list[list[Expression]]:
    """IPv6 of a qube that has it: its own address, no neighbour discovery of any kind (all of it is permanent)."""
    if wire.ip6 is None:
        return []
    tap = wire.tap
    return [
        counted(tap, "spoof", match(field("ip6", "saddr"), wire.ip6, "!=")),
        counted(tap, "nowhere", match(field("ip6", "daddr"), one_of([network(n) for n in NOWHERE6]))),
        counted(tap, "nowhere", match(field("icmpv6", "type"), _DISCOVERY)),
        counted(tap, "nowhere", match(field("udp", "sport"), 547)),  # a server of DHCPv6
        [match(field("ether", "type"), "ip6"), {"jump": {"target": chain}}],
    ]


def _outgoing(wire: Wire) -> list[list[Expression]]:
    """At an uplink: not to this host, and nothing that belongs between qubes."""
    if not wire.uplink:
        return []
    inner = one_of([network(n) for n in QUBES])
    return [
        counted(wire.tap, "host", match(field("ip", "daddr"), f"@{HOST_SET[4]}")),
        counted(wire.tap, "nowhere", match(field("ip", "daddr"), inner)),
    ]


def _outgoing6(wire: Wire) -> list[list[Expression]]:
    """The same for IPv6."""
    if not wire.uplink:
        return []
    return [
        counted(wire.tap, "host", match(field("ip6", "daddr"), f"@{HOST_SET[6]}")),
        counted(wire.tap, "nowhere", match(field("ip6", "daddr"), network(QUBES6))),
    ]


def _firewall(wire: Wire, family: int, reject: bool) -> list[list[Expression]]:
    """The qube's rules. A name is unknown here: see rule_matches()."""
    out: list[list[Expression]] = []
    refuse = _refusal(wire, family, reject)
    accept: list[Expression] = [{"goto": {"target": f"w{wire.qid}"}}]
    for rule in wire.rules:
        for matches in rule_matches(rule, family, None):
            out.extend([*matches, *one] for one in ([accept] if rule["action"] == "accept" else refuse))
    out.extend(refuse)
    return out


def _refusal(wire: Wire, family: int, reject: bool) -> list[list[Expression]]:
    """Tell the qube that its packet was refused, so that its programs need not wait; a flood is told of less often."""
    counter: Expression = {"counter": f"{wire.tap}-firewall"}
    drop: list[Expression] = [counter, _DROP]
    if not reject:
        return [drop]
    kind = "icmp" if family == 4 else "icmpv6"
    limit: Expression = {"limit": {"rate": 50, "burst": 50, "per": "second"}}
    return [[limit, counter, {"reject": {"type": kind, "expr": "admin-prohibited"}}], drop]


def _forward(wire: Wire) -> list[list[Expression]]:
    if wire.peer is None:
        return []
    out: list[list[Expression]] = []
    if wire.seen_ip != wire.ip:
        out.append([match(field("ip", "saddr"), wire.seen_ip), _set("ip", "saddr", wire.ip)])
    # On a network outside there are several machines, and the net qube knows which one it wants.
    to: list[Expression] = [_set("ether", "daddr", SERVED_MAC)] if wire.lan is None else []
    send: list[Expression] = [*to, {"counter": f"{wire.tap}-out"}, {"fwd": {"dev": wire.exit}}]
    for family, remembered in _remembered(wire):
        place = {"concat": [field(family, "daddr"), field("udp", "dport"), field("udp", "sport")]}
        out.append([*_datagram(family), {"set": {"op": "update", "elem": place, "set": remembered}}, *send])
    # A datagram that comes here found its set full.
    out += [counted(wire.tap, "full", *_datagram(family)) for family, _remember in _remembered(wire)]
    return [*out, send]


def _datagram(family: str) -> list[Expression]:
    """A whole datagram, or the first piece of one: the kernel reads ports from later pieces too, which have none."""
    offset = {"&": [field("ip", "frag-off"), 0x1FFF]}
    is_udp = match(meta("l4proto"), PROTOCOLS["udp"])
    return [match(offset, 0), is_udp] if family == "ip" else [match(meta("protocol"), "ip6"), is_udp]


def _remembered(wire: Wire) -> list[tuple[str, str]]:
    """The sets of datagrams that may be answered, by protocol."""
    return [("ip", f"@s{wire.qid}"), *([("ip6", f"@t{wire.qid}")] if wire.ip6 else [])]


def _set(protocol: str, name: str, value: str) -> Expression:
    return {"mangle": {"key": field(protocol, name), "value": value}}


def _pieces(tap: str) -> list[list[Expression]]:
    """Pieces of TCP packets: nobody sends them, and the first could be too small to show what a rule asks for. Of IPv6
    no pieces at all: behind them anything could hide."""
    piece = match({"&": [field("ip", "frag-off"), 0x3FFF]}, 0, "!=")
    return [
        counted(tap, "nowhere", piece, match(meta("l4proto"), PROTOCOLS["tcp"])),
        counted(tap, "nowhere", match({"exthdr": {"name": "frag"}}, True)),
    ]


# -- what comes to a qube


def _incoming(wire: Wire) -> list[list[Expression]]:
    """Answers, unless the qube is open to its net qube. ARP comes here too and is none of this."""
    out: list[list[Expression]] = []
    if not wire.inbound:
        flags = {"&": [field("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}
        out = [
            *_pieces(wire.tap),
            counted(wire.tap, "inbound", match(flags, "syn")),
            *(
                counted(wire.tap, "inbound", match(field(protocol, "type"), {"set": answers}, "!="))
                for protocol, answers in _ANSWERS
            ),
        ]
        for family, remembered in _remembered(wire):
            place = {"concat": [field(family, "saddr"), field("udp", "sport"), field("udp", "dport")]}
            out.append(counted(wire.tap, "inbound", *_datagram(family), match(place, remembered, "!=")))
        known = {"set": [PROTOCOLS[name] for name in ("icmp", "tcp", "udp", "icmpv6")]}
        out.append(counted(wire.tap, "inbound", match(meta("l4proto"), known, "!=")))
    if wire.seen_ip != wire.ip:
        out.append([match(field("ip", "daddr"), wire.ip), _set("ip", "daddr", wire.seen_ip)])
    # A net qube need not know addresses of interfaces, and can send to no other than the one that is there.
    return [*out, [_set("ether", "daddr", wire.mac), {"counter": f"{wire.tap}-in"}, {"fwd": {"dev": wire.tap}}]]


def _others(own: str | None, networks: Iterable[str], family: str) -> list[Expression]:
    """A source that belongs to another qube."""
    source = field(family, "saddr")
    mine = [match(source, own, "!=")] if own else []
    return [*mine, match(source, one_of([network(n) for n in networks]))]


def _served_part(served: Served, clients: list[Wire]) -> Part:
    """What a net qube sends to the qubes that it serves: each to its own wire, from nobody else's address."""
    tap = served.tap
    arps = [[wire.seen_ip, {"goto": {"target": f"r{wire.qid}"}}] for wire in clients if wire.seen_ip == wire.ip]
    fours = [[wire.ip, {"goto": {"target": f"r{wire.qid}"}}] for wire in clients]
    sixes = [[wire.ip6, {"goto": {"target": f"r{wire.qid}"}}] for wire in clients if wire.ip6 and served.ip6]
    rules: tuple[list[Expression], ...] = (
        counted(tap, "mac", match(field("ether", "saddr"), SERVED_MAC, "!=")),
        _other_kinds(tap, bool(served.ip6)),
        [
            match(field("arp", "htype"), 1),
            match(field("arp", "operation"), one_of(["request", "reply"])),
            match(field("arp", "saddr ether"), SERVED_MAC),
            match(field("arp", "saddr ip"), one_of([network(n) for n in QUBES]), "!="),
            at_most(ARP_RATE),
            {"vmap": {"key": field("arp", "daddr ip"), "data": f"@{tap}-arp"}},
        ],
        [
            match(field("arp", "saddr ether"), SERVED_MAC),
            match(field("arp", "saddr ip"), served.ip),
            at_most(ARP_RATE),
            {"vmap": {"key": field("arp", "daddr ip"), "data": f"@{tap}-arp"}},
        ],
        counted(tap, "arp", match(field("ether", "type"), "arp")),
        counted(tap, "spoof", *_others(served.ip, QUBES, "ip")),
        counted(tap, "spoof", match(field("ip", "saddr"), one_of([network(n) for n in NOWHERE]))),
        counted(tap, "nowhere", match(field("udp", "sport"), 67)),
        [{"vmap": {"key": field("ip", "daddr"), "data": f"@{tap}-ip"}}],
        *(
            (
                counted(tap, "spoof", *_others(served.ip6, [QUBES6], "ip6")),
                counted(tap, "spoof", match(field("ip6", "saddr"), one_of([network(n) for n in NOWHERE6]))),
                counted(tap, "nowhere", match(field("icmpv6", "type"), _DISCOVERY)),
                [{"vmap": {"key": field("ip6", "daddr"), "data": f"@{tap}-ip6"}}],
            )
            if served.ip6
            else ()
        ),
        counted(tap, "type"),
    )
    maps: dict[str, tuple[str, list[Any]]] = {
        f"{tap}-arp": ("ipv4_addr", arps),
        f"{tap}-ip": ("ipv4_addr", fours),
        f"{tap}-ip6": ("ipv6_addr", sixes),
    }
    causes = ("mac", "type", "arp", "spoof", "nowhere")
    return Part(tap, {tap: rules}, tuple(f"{tap}-{cause}" for cause in causes), maps)


def _uplink_part(wire: Wire) -> Part:
    """What comes from this host's network: to the net qube's address, from no qube's."""
    tap = wire.peer or ""
    answer: Expression = {"goto": {"target": f"r{wire.qid}"}}
    rules: tuple[list[Expression], ...] = (
        _other_kinds(tap, bool(wire.ip6)),
        [match(field("arp", "daddr ip"), wire.ip), {"fwd": {"dev": wire.tap}}],
        counted(tap, "spoof", *_others(None, QUBES, "ip")),
        [match(field("ip", "daddr"), wire.ip), answer],
        *(
            (
                counted(tap, "spoof", *_others(None, [QUBES6], "ip6")),
                # Neighbour discovery and router advertisements: the net qube's neighbour is permanent.
                counted(tap, "type", match(field("icmpv6", "type"), _DISCOVERY)),
                [match(field("ip6", "daddr"), wire.ip6), answer],
            )
            if wire.ip6
            else ()
        ),
        counted(tap, "type"),
    )
    return Part(tap, {tap: rules}, (f"{tap}-spoof", f"{tap}-type"), {})
