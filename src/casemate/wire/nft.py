"""nft expressions as libnftables-json(5) has them, and those that a firewall rule means (pure).

The wire room on the host and the agent of a net qube compile the same rules by the same function, so that the two
places where a rule holds cannot read it differently.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from casemate.wire.firewall import Rule

    Expression = dict[str, Any]

DNS = ("10.139.1.1", "10.139.1.2")
"""The addresses of the name servers of every qube; its net qube sends what comes for them on to its own."""

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
"""Numbers, because nft finds names in /etc/protocols, which a small guest does not have."""
IP = {4: "ip", 6: "ip6"}
"""The protocol's name in nft, by IP family."""


def match(left: Expression, right: object, op: str = "==") -> Expression:
    """A comparison."""
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str) -> Expression:
    """A field of a packet's header."""
    return {"payload": {"protocol": protocol, "field": name}}


def meta(key: str) -> Expression:
    """What the kernel knows of a packet beside its bytes."""
    return {"meta": {"key": key}}


def one_of(values: Sequence[object]) -> object:
    """A value, or an anonymous set of several."""
    return values[0] if len(values) == 1 else {"set": list(values)}


def at_most(rate: int) -> Expression:
    """Packets a second that match, in bursts of twice as many."""
    return {"limit": {"rate": rate, "burst": 2 * rate, "per": "second"}}


def arp_of(mac: str) -> list[Expression]:
    """ARP in its only usual form, for IPv4 on Ethernet, in whose inner fields that MAC address speaks."""
    return [
        match(field("arp", "htype"), 1),
        match(field("arp", "ptype"), 0x0800),
        match(field("arp", "hlen"), 6),
        match(field("arp", "plen"), 4),
        match(field("arp", "operation"), one_of(["request", "reply"])),
        match(field("arp", "saddr ether"), mac),
    ]


def network(text: str) -> object:
    """An address, or a network, from its text form."""
    address, _, length = text.partition("/")
    full = "128" if ":" in address else "32"
    return {"prefix": {"addr": address, "len": int(length)}} if length and length != full else address


def rule_matches(rule: Rule, family: int, names: str | None) -> list[list[Expression]]:
    """What a packet of an IP family must be, for the rule to decide about it: one list of comparisons for each nft rule
    that is needed. Empty when the rule has nothing to say about this family.

    ``names`` is the set, such as ``@h3``, of the addresses that the rule's host name has. None where names are not
    known: then a rule that accepts is read without its destination and one that drops says nothing, so that no traffic
    is refused that the rules allow. Whoever knows the names decides again.
    """
    ip = IP[family]
    wrong_family = "dst6" if family == 4 else "dst4"
    if wrong_family in rule:
        return []
    base: list[Expression] = []
    if "expire" in rule:
        base.append(match(meta("time"), int(rule["expire"]), "<"))
    protocols = [rule["proto"]] if "proto" in rule else []
    if rule.get("specialtarget") == "dns":
        if family == 6 or rule.get("proto") == "icmp":
            return []
        to = match(field(ip, "daddr"), one_of(DNS))
        return [[*base, to, match(field(name, "dport"), 53)] for name in protocols or ["tcp", "udp"]]
    address = rule.get("dst4") or rule.get("dst6")
    if address is not None and not address.endswith("/0"):
        base.append(match(field(ip, "daddr"), network(address)))
    elif "dsthost" in rule:
        if names is not None:
            base.append(match(field(ip, "daddr"), names))
        elif rule["action"] == "drop":
            return []
    if not protocols:
        return [base]
    name = "icmpv6" if protocols[0] == "icmp" and family == 6 else protocols[0]
    if "dstports" in rule:
        low, _, high = rule["dstports"].partition("-")
        ports: object = int(low) if high in ("", low) else {"range": [int(low), int(high)]}
        return [[*base, match(field(name, "dport"), ports)]]
    if "icmptype" in rule:
        return [[*base, match(field(name, "type"), int(rule["icmptype"]))]]
    return [[*base, match(meta("l4proto"), PROTOCOLS[name])]]
