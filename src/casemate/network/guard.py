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

One file although it is long: the rules of a wire are read, and checked, as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import TYPE_CHECKING, Any

from casemate.network.plan import SERVED_MAC, Plan, Served, Wire
from casemate.wire.nft import PROTOCOLS, field, match, meta, network, one_of, rule_matches

if TYPE_CHECKING:
    from casemate.wire.nft import Expression

TABLE = "room"
HOST_SET = {4: "host4", 6: "host6"}
"""Sets of this host's own addresses: pasta would connect to them as to any other."""
QUBES = ("10.137.0.0/16", "10.138.0.0/16")
"""Where all addresses of qubes are. Each is legal on one wire only, also while its qube does not run."""
QUBES6 = "fd09:24ef:4179::/48"
DNS_NETWORK = "10.139.0.0/16"
"""Addresses of virtual name servers and uplinks: never real ones."""
NOWHERE = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
"""Destinations that no qube may send to: this host's loopback, what is local to a wire, many receivers at once."""
NOWHERE6 = ("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")
UDP_SECONDS = 180
"""How long the answers to a datagram pass, as long as the kernel's connection tracking lets them."""
MAX_UDP = 8192
"""Limit of a wire: datagrams to different places that wait for answers; more are dropped until others expire."""
_ANSWERS = {4: ("icmp", [0, 3, 11, 12]), 6: ("icmpv6", [1, 2, 3, 4, 129])}
"""Types of ICMP that answer something: echo replies and errors (RFC 792, RFC 4443)."""
ARP_RATE = 10
"""ARP packets a second from a qube, in bursts of twice as many. Agents of ours need none: neighbours are permanent."""

DROPS = ("mac", "type", "arp", "spoof", "nowhere", "firewall", "host", "full", "inbound")
"""Causes of a drop, each a counter ``TAP-CAUSE`` of every tap that it can happen on."""

Command = dict[str, Any]
_DROP: Expression = {"drop": None}


@dataclass(frozen=True)
class Part:
    """The rules of one tap: chains with their content, maps with their elements, counters."""

    device: str
    chains: Mapping[str, tuple[list[Expression], ...]]
    """Rules by chain; the first chain is the one at the ingress of ``device``, the others are jumped to."""
    counters: tuple[str, ...]
    maps: Mapping[str, tuple[str, list[Any]]]
    """(type of the key, elements) by verdict map."""
    sets: Mapping[str, list[str]] = attribute(default_factory=dict)
    """Types of the parts of an element, by set that packets fill."""

    def declare(self, old: Part | None) -> Iterable[Command]:
        """Commands that make what is not there; nothing changes where it is. ``old``: what was loaded before."""
        for name in self.counters:
            yield _add("counter", name=name)
        for name, (kind, _elements) in self.maps.items():
            yield _add("map", name=name, type=kind, map="verdict")
        for name, types in self.sets.items():
            # A set that packets fill has one more flag in the kernel than we can give it, so it differs from ours and
            # cannot be declared again.
            if old is not None and name in old.sets:
                continue
            timed = {"flags": ["timeout"], "timeout": UDP_SECONDS, "size": MAX_UDP}
            yield _add("set", name=name, type=types, **timed)
        for name in self.chains:
            hook = {"type": "filter", "hook": "ingress", "dev": self.device, "prio": 0, "policy": "drop"}
            yield _add("chain", name=name, **(hook if name == self.device else {}))

    def fill(self) -> Iterable[Command]:
        """Commands that give chains and maps their content, in place of what they had."""
        for name, rules in self.chains.items():
            yield {"flush": {"chain": _named(name)}}
            for expressions in rules:
                yield _add("rule", chain=name, expr=expressions)
        for name, (_kind, elements) in self.maps.items():
            yield {"flush": {"map": _named(name)}}
            if elements:
                yield _add("element", name=name, elem=elements)

    def empty(self) -> Iterable[Command]:
        """Commands that take the content out; then nothing refers to another part."""
        for name in self.chains:
            yield {"flush": {"chain": _named(name)}}
        for name in self.maps:
            yield {"flush": {"map": _named(name)}}

    def remove(self) -> Iterable[Command]:
        """Commands that remove it, when it is empty and no other part refers to it."""
        for name in self.chains:
            yield {"delete": {"chain": _named(name)}}
        for name in self.maps:
            yield {"delete": {"map": _named(name)}}
        for name in self.sets:
            yield {"delete": {"set": _named(name)}}
        for name in self.counters:
            yield {"delete": {"counter": _named(name)}}


def _named(name: str) -> dict[str, str]:
    return {"family": "netdev", "table": TABLE, "name": name}


def _add(kind: str, **what: Any) -> Command:
    return {"add": {kind: {"family": "netdev", "table": TABLE, **what}}}


def table() -> list[Command]:
    """The table and the sets that all parts share."""
    return [
        {"add": {"table": {"family": "netdev", "name": TABLE}}},
        _add("set", name=HOST_SET[4], type="ipv4_addr"),
        _add("set", name=HOST_SET[6], type="ipv6_addr"),
    ]


def host_addresses(four: Iterable[str], six: Iterable[str]) -> list[Command]:
    """Commands that replace the sets of this host's addresses."""
    commands: list[Command] = []
    for family, addresses in ((4, sorted(four)), (6, sorted(six))):
        commands.append({"flush": {"set": _named(HOST_SET[family])}})
        if addresses:
            commands.append(_add("element", name=HOST_SET[family], elem=addresses))
    return commands


def parts(plan: Plan, reject: bool = True) -> dict[str, Part]:
    """All parts that a plan needs, by tap. ``reject``: whether this host's kernel can answer what it refuses."""
    found = {wire.tap: _qube_part(wire, reject) for wire in plan.wires}
    for served in plan.served:
        clients = [wire for wire in plan.wires if wire.peer == served.tap]
        found[served.tap] = _served_part(served, clients)
    for wire in plan.wires:
        if wire.uplink and wire.peer is not None:
            found[wire.peer] = _uplink_part(wire)
    return found


# -- what a qube sends


def _counted(tap: str, cause: str, *matches: Expression) -> list[Expression]:
    return [*matches, {"counter": f"{tap}-{cause}"}, _DROP]


def _qube_part(wire: Wire, reject: bool) -> Part:
    tap, four, six = wire.tap, f"f{wire.qid}", f"g{wire.qid}"
    chains: dict[str, tuple[list[Expression], ...]] = {
        tap: (
            _counted(tap, "mac", match(field("ether", "saddr"), wire.mac, "!=")),
            _other_kinds(tap, bool(wire.ip6)),
            *_arp(wire),
            _counted(tap, "spoof", match(field("ip", "saddr"), wire.seen_ip, "!=")),
            # Options of IPv4 (source routes among them) are used by nobody; what has none is 5 words long.
            _counted(tap, "nowhere", match(field("ip", "hdrlength"), 5, "!=")),
            _counted(tap, "nowhere", match(field("ip", "daddr"), one_of([network(n) for n in NOWHERE]))),
            # A server of DHCP: nobody asks, so an answer is an attack.
            _counted(tap, "nowhere", match(field("udp", "sport"), 67)),
            *_pieces(tap),
            [match(field("ether", "type"), "ip"), {"jump": {"target": four}}],
            *_guard6(wire, six),
            _counted(tap, "type"),
        ),
        four: (*_outgoing(wire), *_firewall(wire, 4, reject)),
        six: tuple(_firewall(wire, 6, reject)) if wire.ip6 else (),
        f"w{wire.qid}": tuple(_forward(wire)),
        f"r{wire.qid}": tuple(_incoming(wire)),
    }
    causes = [f"{tap}-{cause}" for cause in DROPS]
    sets = {f"s{wire.qid}": ["ipv4_addr", "inet_service", "inet_service"]}
    if wire.ip6:
        sets[f"t{wire.qid}"] = ["ipv6_addr", "inet_service", "inet_service"]
    return Part(tap, chains, (*causes, f"{tap}-out", f"{tap}-in"), {}, sets)


def _other_kinds(tap: str, six: bool) -> list[Expression]:
    """Frames of other kinds than a wire has. This must come first: of a tagged frame the kernel shows the packet in it
    as if there were no tag, to every comparison but this one."""
    kinds = ["ip", "arp", "ip6"] if six else ["ip", "arp"]
    return _counted(tap, "type", match(field("ether", "type"), one_of(kinds), "!="))


def _arp(wire: Wire) -> list[list[Expression]]:
    """ARP about the qube's own address only, in its inner fields too, and slowly."""
    is_arp = match(field("ether", "type"), "arp")
    out: list[list[Expression]] = []
    if wire.peer is not None:
        out.append(
            [
                match(field("arp", "htype"), 1),
                match(field("arp", "ptype"), 0x0800),
                match(field("arp", "hlen"), 6),
                match(field("arp", "plen"), 4),
                match(field("arp", "operation"), one_of(["request", "reply"])),
                match(field("arp", "saddr ether"), wire.mac),
                match(field("arp", "saddr ip"), wire.seen_ip),
                {"limit": {"rate": ARP_RATE, "burst": 2 * ARP_RATE, "per": "second"}},
                {"fwd": {"dev": wire.peer}},
            ]
        )
    return [*out, _counted(wire.tap, "arp", is_arp)]


def _guard6(wire: Wire, chain: str) -> list[list[Expression]]:
    """IPv6 of a qube that has it: its own address, no neighbour discovery of any kind (all of it is permanent)."""
    if wire.ip6 is None:
        return []
    tap = wire.tap
    discovery = {"range": [133, 137]}  # router solicitation to redirect, RFC 4861
    return [
        _counted(tap, "spoof", match(field("ip6", "saddr"), wire.ip6, "!=")),
        _counted(tap, "nowhere", match(field("ip6", "daddr"), one_of([network(n) for n in NOWHERE6]))),
        _counted(tap, "nowhere", match(field("icmpv6", "type"), discovery)),
        _counted(tap, "nowhere", match(field("udp", "sport"), 547)),  # a server of DHCPv6
        [match(field("ether", "type"), "ip6"), {"jump": {"target": chain}}],
    ]


def _outgoing(wire: Wire) -> list[list[Expression]]:
    """At an uplink: not to this host, and nothing that belongs between qubes."""
    if not wire.uplink:
        return []
    inner = one_of([network(n) for n in QUBES])
    return [
        _counted(wire.tap, "host", match(field("ip", "daddr"), f"@{HOST_SET[4]}")),
        _counted(wire.tap, "nowhere", match(field("ip", "daddr"), inner)),
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
    send: list[Expression] = [
        _set("ether", "daddr", SERVED_MAC),
        {"counter": f"{wire.tap}-out"},
        {"fwd": {"dev": wire.peer}},
    ]
    for family, remembered in _remembered(wire):
        place = {"concat": [field(family, "daddr"), field("udp", "dport"), field("udp", "sport")]}
        out.append([*_datagram(family), {"set": {"op": "update", "elem": place, "set": remembered}}, *send])
    # A datagram that comes here found its set full.
    out += [_counted(wire.tap, "full", *_datagram(family)) for family, _remember in _remembered(wire)]
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
        _counted(tap, "nowhere", piece, match(meta("l4proto"), PROTOCOLS["tcp"])),
        _counted(tap, "nowhere", match({"exthdr": {"name": "frag"}}, True)),
    ]


# -- what comes to a qube


def _incoming(wire: Wire) -> list[list[Expression]]:
    """Answers, unless the qube is open to its net qube. ARP comes here too and is none of this."""
    out: list[list[Expression]] = []
    if not wire.inbound:
        flags = {"&": [field("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}
        out = [
            *_pieces(wire.tap),
            _counted(wire.tap, "inbound", match(flags, "syn")),
            *(
                _counted(wire.tap, "inbound", match(field(protocol, "type"), {"set": answers}, "!="))
                for protocol, answers in _ANSWERS.values()
            ),
        ]
        for family, remembered in _remembered(wire):
            place = {"concat": [field(family, "saddr"), field("udp", "sport"), field("udp", "dport")]}
            out.append(_counted(wire.tap, "inbound", *_datagram(family), match(place, remembered, "!=")))
        known = {"set": [PROTOCOLS[name] for name in ("icmp", "tcp", "udp", "icmpv6")]}
        out.append(_counted(wire.tap, "inbound", match(meta("l4proto"), known, "!=")))
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
        _counted(tap, "mac", match(field("ether", "saddr"), SERVED_MAC, "!=")),
        _other_kinds(tap, bool(served.ip6)),
        [
            match(field("arp", "htype"), 1),
            match(field("arp", "operation"), one_of(["request", "reply"])),
            match(field("arp", "saddr ether"), SERVED_MAC),
            match(field("arp", "saddr ip"), one_of([network(n) for n in QUBES]), "!="),
            {"limit": {"rate": ARP_RATE, "burst": 2 * ARP_RATE, "per": "second"}},
            {"vmap": {"key": field("arp", "daddr ip"), "data": f"@{tap}-arp"}},
        ],
        [
            match(field("arp", "saddr ether"), SERVED_MAC),
            match(field("arp", "saddr ip"), served.ip),
            {"limit": {"rate": ARP_RATE, "burst": 2 * ARP_RATE, "per": "second"}},
            {"vmap": {"key": field("arp", "daddr ip"), "data": f"@{tap}-arp"}},
        ],
        _counted(tap, "arp", match(field("ether", "type"), "arp")),
        _counted(tap, "spoof", *_others(served.ip, QUBES, "ip")),
        _counted(tap, "spoof", match(field("ip", "saddr"), one_of([network(n) for n in NOWHERE]))),
        _counted(tap, "nowhere", match(field("udp", "sport"), 67)),
        [{"vmap": {"key": field("ip", "daddr"), "data": f"@{tap}-ip"}}],
        *(
            (
                _counted(tap, "spoof", *_others(served.ip6, [QUBES6], "ip6")),
                _counted(tap, "spoof", match(field("ip6", "saddr"), one_of([network(n) for n in NOWHERE6]))),
                _counted(tap, "nowhere", match(field("icmpv6", "type"), {"range": [133, 137]})),
                [{"vmap": {"key": field("ip6", "daddr"), "data": f"@{tap}-ip6"}}],
            )
            if served.ip6
            else ()
        ),
        _counted(tap, "type"),
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
    rules: tuple[list[Expression], ...] = (
        _other_kinds(tap, False),
        [match(field("arp", "daddr ip"), wire.ip), {"fwd": {"dev": wire.tap}}],
        _counted(tap, "spoof", *_others(None, QUBES, "ip")),
        [match(field("ip", "daddr"), wire.ip), {"goto": {"target": f"r{wire.qid}"}}],
        _counted(tap, "type"),
    )
    return Part(tap, {tap: rules}, (f"{tap}-spoof", f"{tap}-type"), {})


def changes(before: Mapping[str, Part], after: Mapping[str, Part]) -> list[Command]:
    """One transaction that leads from these parts to those.

    What refers to another part comes after it is declared, and is emptied before it is removed.
    """
    gone = [part for tap, part in before.items() if tap not in after]
    new = [part for tap, part in after.items() if before.get(tap) != part]
    commands = [command for part in new for command in part.declare(before.get(part.device))]
    commands += [command for part in gone for command in part.empty()]
    commands += [command for part in new for command in part.fill()]
    # Chains, maps and counters of a part that changed and does not have them any more.
    for part in new:
        old = before.get(part.device)
        if old is not None:
            commands += _leftovers(old, part)
    commands += [command for part in gone for command in part.remove()]
    return commands


def _leftovers(old: Part, new: Part) -> list[Command]:
    chains = [name for name in old.chains if name not in new.chains]
    sets = [name for name in old.sets if name not in new.sets]
    return [
        *({"flush": {"chain": _named(name)}} for name in chains),
        *({"delete": {"chain": _named(name)}} for name in chains),
        *({"delete": {"set": _named(name)}} for name in sets),
    ]


def everything(after: Mapping[str, Part], hosts: Iterable[Command]) -> list[Command]:
    """One transaction that puts all rules anew, whatever was there: for a daemon that has just started."""
    whole: dict[str, Any] = {"table": {"family": "netdev", "name": TABLE}}
    return [{"add": whole}, {"delete": whole}, *table(), *hosts, *changes({}, after)]
