"""The nft rules of a net qube, as libnftables-json has them (pure).

::

    from a qube (vif0)                                          to a qube
      raw:  source must be a connected qube                       forward: answers only; custom-forward first
      mangle: chain of that qube: its firewall                  from outside (eth0)
      nat:  10.139.1.1, .2 ─▶ the name service of this qube       raw: source must not be a qube's
      forward: to outside only                                    forward: answers only
      nat:  masquerade

A qube's firewall is judged before its packets are rewritten or routed, so that it also holds for the name service and
for this qube itself. Each qube's chain is replaced as a whole. An open connection carries the number of the chain that
let it pass: when the chain is replaced, the number is another, and the connection is judged anew. So a tightened rule
cuts what is open, and connections to names go on when the name's addresses expire.

Names of tables, chains and sets are those of Qubes OS: what its users write into ``custom-input`` and
``custom-forward`` (``/rw/config/qubes-firewall-user-script``) fits.
"""

from __future__ import annotations

from casemate.agent.interface import SERVED
from casemate.wire.nft import DNS, IP, PROTOCOLS, field, match, meta, one_of, rule_matches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from casemate.wire.firewall import Rule
    from casemate.wire.nft import Expression

    Command = dict[str, Any]

TABLE = "qubes"
NAME_PORT = 5300
"""Port of this qube's own name service, to which what comes for the virtual name servers is sent."""
_MARK: Expression = {"ct": {"key": "mark"}}


class Builder:
    """Commands for one family's table."""

    def __init__(self, family: int) -> None:
        self.ip = IP[family]
        self.address_type = "ipv4_addr" if family == 4 else "ipv6_addr"

    def named(self, name: str) -> dict[str, str]:
        return {"family": self.ip, "table": TABLE, "name": name}

    def add(self, kind: str, **what: Any) -> Command:
        return {"add": {kind: {"family": self.ip, "table": TABLE, **what}}}

    def chain(
        self, name: str, hook: str = "", priority: int = 0, kind: str = "filter", policy: str = "drop"
    ) -> Command:
        if not hook:
            return self.add("chain", name=name)
        return self.add("chain", name=name, type=kind, hook=hook, prio=priority, policy=policy)

    def rule(self, chain: str, *expressions: Expression) -> Command:
        return self.add("rule", chain=chain, expr=list(expressions))


_ACCEPT: Expression = {"accept": None}
_DROP: Expression = {"drop": None}
_COUNT: Expression = {"counter": None}


def _in(interface: str, op: str = "==") -> Expression:
    return match(meta("iifname"), interface, op)


def _out(interface: str, op: str = "==") -> Expression:
    return match(meta("oifname"), interface, op)


def _state(*states: str) -> Expression:
    return match({"ct": {"key": "state"}}, list(states), "in")


def _refuse(family: int) -> Expression:
    kind = "icmp" if family == 4 else "icmpv6"
    return {"reject": {"type": kind, "expr": "admin-prohibited"}}


def base(family: int) -> list[Command]:
    """The table without qubes. Adding it again empties it first, in the same transaction, but for the custom chains."""
    b = Builder(family)
    echo = match(meta("l4proto"), PROTOCOLS["icmp" if family == 4 else "icmpv6"])
    commands: list[Command] = [
        {"add": {"table": {"family": b.ip, "name": TABLE}}},
        b.add("set", name="downstream", type=b.address_type),
        b.add("map", name="clients", type=b.address_type, map="verdict"),
        b.chain("custom-input"),
        b.chain("custom-forward"),
        b.chain("antispoof", "prerouting", -300),
        b.chain("firewall", "prerouting", -150),
        b.chain("input", "input"),
        b.chain("forward", "forward"),
        b.chain("postrouting", "postrouting", 100, "nat", "accept"),
    ]
    chains = ["antispoof", "firewall", "input", "forward", "postrouting"]
    if family == 4:
        commands.append(b.chain("dnat-dns", "prerouting", -100, "nat", "accept"))
        chains.append("dnat-dns")
    commands += [{"flush": {"chain": b.named(name)}} for name in chains]
    downstream = "@downstream"
    commands += [
        # An address is legal on one side only, also while its qube does not run.
        b.rule("antispoof", _in(SERVED), match(field(b.ip, "saddr"), downstream), _ACCEPT),
        b.rule("antispoof", _in(SERVED), _COUNT, _DROP),
        b.rule("antispoof", match(field(b.ip, "saddr"), downstream), _COUNT, _DROP),
        b.rule("antispoof", _ACCEPT),
        b.rule("firewall", _in(SERVED, "!="), _ACCEPT),
        b.rule("firewall", {"vmap": {"key": field(b.ip, "saddr"), "data": "@clients"}}),
        b.rule("firewall", _COUNT, _DROP),
        b.rule("input", {"jump": {"target": "custom-input"}}),
        b.rule("input", _state("invalid"), _COUNT, _DROP),
        b.rule("input", _state("established", "related"), _ACCEPT),
        b.rule("input", _in("lo"), _ACCEPT),
        b.rule("input", _in(SERVED), echo, _ACCEPT),
        b.rule("forward", {"jump": {"target": "custom-forward"}}),
        b.rule("forward", _state("invalid"), _COUNT, _DROP),
        # From one served qube to another, and a new connection to one, only by custom-forward.
        b.rule("forward", _in(SERVED), _out(SERVED, "!="), _ACCEPT),
        b.rule("forward", _in(SERVED, "!="), _out(SERVED), _state("established", "related"), _ACCEPT),
        b.rule("forward", _COUNT, _DROP),
        b.rule("postrouting", _out(SERVED), _ACCEPT),
        b.rule("postrouting", _out("lo"), _ACCEPT),
        b.rule("postrouting", {"masquerade": None}),
    ]
    if family == 4:
        to_us = match(field("ip", "daddr"), one_of(DNS))
        for protocol in ("udp", "tcp"):
            port = match(field(protocol, "dport"), 53)
            commands.append(b.rule("dnat-dns", _in(SERVED), to_us, port, {"redirect": {"port": NAME_PORT}}))
            mine = match(field(protocol, "dport"), NAME_PORT)
            commands.append(b.rule("input", _in(SERVED), mine, match({"ct": {"key": "status"}}, "dnat", "in"), _ACCEPT))
    commands.append(b.rule("input", _in(SERVED), _refuse(family)))
    return commands


def chain_of(address: str) -> str:
    """The name of the chain of a qube's firewall."""
    return "qbs-" + address.replace(".", "-").replace(":", "-")


def name_set(family: int, number: int, host: str) -> str:
    """The set of the addresses of a host name in the rules of the qube with this number."""
    import zlib

    return f"n{number}-{zlib.crc32(host.lower().encode()):08x}-{family}"


def client(family: int, address: str, number: int, mark: int, rules: Sequence[Rule] | None) -> list[Command]:
    """Replace the firewall of one qube. ``number`` tells its sets from others', ``mark`` is of this version alone.

    ``rules`` None: they are missing or could not be understood, so nothing passes.
    """
    b = Builder(family)
    name = chain_of(address)
    commands = [b.chain(name), {"flush": {"chain": b.named(name)}}]
    body: list[Command] = []
    if rules is not None:
        body.append(b.rule(name, match(_MARK, mark), _ACCEPT))
        accept: list[Expression] = [{"mangle": {"key": _MARK, "value": mark}}, _ACCEPT]
        for rule in rules:
            names = None
            if "dsthost" in rule:
                names = "@" + name_set(family, number, rule["dsthost"])
                commands.append(b.add("set", name=names[1:], type=b.address_type, flags=["timeout"], size=SET_SIZE))
            for matches in rule_matches(rule, family, names):
                body.append(b.rule(name, *matches, *(accept if rule["action"] == "accept" else [_refuse(family)])))
    body.append(b.rule(name, _COUNT, _refuse(family)))
    element = b.add("element", name="clients", elem=[[address, {"goto": {"target": name}}]])
    return [*commands, *body, element]


SET_SIZE = 512
"""Addresses that the names of one rule may have at a time; more are not let through until others expire."""


def forget(family: int, address: str) -> list[Command]:
    """Remove the firewall of a qube that is not served any more: then nothing of it passes."""
    b = Builder(family)
    name = chain_of(address)
    gone = {"delete": {"element": {**b.named("clients"), "elem": [[address, {"goto": {"target": name}}]]}}}
    return [gone, {"flush": {"chain": b.named(name)}}, {"delete": {"chain": b.named(name)}}]


def connected(family: int, addresses: Sequence[str]) -> list[Command]:
    """Replace the set of qubes that are served."""
    b = Builder(family)
    commands: list[Command] = [{"flush": {"set": b.named("downstream")}}]
    if addresses:
        commands.append(b.add("element", name="downstream", elem=list(addresses)))
    return commands


def learned(family: int, names: str, addresses: Sequence[tuple[str, int]]) -> list[Command]:
    """Put addresses of a name into its set, each for its seconds; one that is there begins anew."""
    ident = Builder(family).named(names)
    elements = [{"elem": {"val": address, "timeout": seconds}} for address, seconds in addresses]
    # Adding alone does not prolong; deleting what is not there is an error. So: add, delete, add, in one transaction.
    plain = [address for address, _seconds in addresses]
    return [
        {"add": {"element": {**ident, "elem": elements}}},
        {"delete": {"element": {**ident, "elem": plain}}},
        {"add": {"element": {**ident, "elem": elements}}},
    ]
