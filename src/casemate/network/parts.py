"""The rules of the wire room as parts, one for each tap, and the transactions that lead from some to others (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casemate.wire.nft import network

if TYPE_CHECKING:
    from casemate.wire.nft import Expression

TABLE = "room"
HOST_SET = {4: "host4", 6: "host6"}
"""Sets of this host's own addresses: pasta would connect to them as to any other."""
UDP_SECONDS = 180
"""How long the answers to a datagram pass, as long as the kernel's connection tracking lets them."""
MAX_UDP = 8192
"""Limit of a wire: datagrams to different places that wait for answers; more are dropped until others expire."""

QUBES = ("10.137.0.0/16", "10.138.0.0/16")
"""Where all addresses of qubes are. Each is legal on one wire only, also while its qube does not run."""
QUBES6 = "fd09:24ef:4179::/48"
NOWHERE = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
"""Destinations that no qube may send to: this host's loopback, what is local to a wire, many receivers at once."""
NOWHERE6 = ("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")
ARP_RATE = 10
"""ARP packets a second from a qube, in bursts of twice as many. Agents of ours need none: neighbours are permanent."""

Command = dict[str, Any]


def counted(tap: str, cause: str, *matches: Expression) -> list[Expression]:
    """A rule that drops what matches, and counts it at the tap by its cause."""
    return [*matches, {"counter": f"{tap}-{cause}"}, {"drop": None}]


@dataclass(frozen=True)
class Part:
    """The rules of one tap: chains with their content, maps with their elements, counters."""

    device: str
    """The interface: the tap itself, or the card that the tap's name stands for."""
    chains: Mapping[str, tuple[list[Expression], ...]]
    """Rules by chain; the first chain is the one at the ingress of ``device``, the others are jumped to."""
    counters: tuple[str, ...]
    maps: Mapping[str, tuple[str, list[Any]]]
    """(type of the key, elements) by verdict map."""
    sets: Mapping[str, list[str]] = field(default_factory=dict)
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
        for number, name in enumerate(self.chains):
            hook = {"type": "filter", "hook": "ingress", "dev": self.device, "prio": 0, "policy": "drop"}
            yield _add("chain", name=name, **(hook if number == 0 else {}))

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
            # A chain that went with its interface is made again, to be removed with the others.
            yield _add("chain", name=name)
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
        _add("set", name=HOST_SET[4], type="ipv4_addr", flags=["interval"]),
        _add("set", name=HOST_SET[6], type="ipv6_addr", flags=["interval"]),
    ]


def host_addresses(four: Iterable[str], six: Iterable[str]) -> list[Command]:
    """Commands that replace the sets of this host's addresses and networks, of which no two may overlap."""
    commands: list[Command] = []
    for family, addresses in ((4, sorted(four)), (6, sorted(six))):
        commands.append({"flush": {"set": _named(HOST_SET[family])}})
        if addresses:
            commands.append(_add("element", name=HOST_SET[family], elem=[network(one) for one in addresses]))
    return commands


def changes(before: Mapping[str, Part], after: Mapping[str, Part]) -> list[Command]:
    """One transaction that leads from these parts to those.

    What refers to another part comes after it is declared, and is emptied before it is removed.
    """
    moved = {tap for tap, part in before.items() if tap in after and after[tap].device != part.device}
    gone = [part for tap, part in before.items() if tap not in after]
    new = {tap: part for tap, part in after.items() if before.get(tap) != part}
    # A chain stays at the interface that it was made for, so rules for another one begin anew.
    commands = [command for tap in moved for command in (*before[tap].empty(), *before[tap].remove())]
    known = {tap: part for tap, part in before.items() if tap not in moved}
    commands += [command for tap, part in new.items() for command in part.declare(known.get(tap))]
    commands += [command for part in gone for command in part.empty()]
    commands += [command for part in new.values() for command in part.fill()]
    # Chains and sets of a part that changed and does not have them any more: its maps and counters are always the same.
    for tap, part in new.items():
        if tap in known:
            commands += _leftovers(known[tap], part)
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
