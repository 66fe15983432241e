"""The nft rules of a wire that goes to a network outside, by a card of this host (pure).

::

    tap u3 of the net qube                          card in the room (rules named x3)
      its MAC address, in ARP and DHCP too            for its MAC address, or for all
      ARP ─────────────────────── fwd ─▶ card         ARP, slowly ───────────── fwd ─▶ u3
      a question of DHCP ──────── fwd ─▶ card         an answer of DHCP ─────── fwd ─▶ u3
      an address from outside ─▶ firewall ─ fwd ─▶    to an address from outside ─▶ r3: answers only ─ fwd ─▶ u3

Which addresses the machines of that network have is not known here, nor is that of a net qube which asks for one. What
is known is which addresses are not outside: those of qubes, of this host, of a loopback. Where the user gave the net
qube its address, it has that one alone. The net qube hides the qubes that it serves behind its own (masquerade); no
packet passes here that bears one of theirs, in either direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.model.uplinks import INNER
from casemate.network.parts import ARP_RATE, HOST_SET, NOWHERE, Part, counted
from casemate.wire.nft import arp_of, at_most, field, match, network, one_of

if TYPE_CHECKING:
    from casemate.network.plan import Lan, Wire
    from casemate.wire.nft import Expression

LAN_ARP_RATE = 100
"""ARP packets a second to a net qube from a network outside, in bursts of twice as many: every machine there asks
everybody."""
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_DHCP_SERVER, _DHCP_CLIENT = 67, 68
_CHADDR_BITS = (8 + 28) * 8
"""Where the client's MAC address stands in a question of DHCP: after the header of UDP, in its octet 28 (RFC 2131)."""


def _networks(texts: tuple[str, ...]) -> object:
    return one_of([network(text) for text in texts])


def _is(kind: str) -> Expression:
    return match(field("ether", "type"), kind)


def _to_many() -> Expression:
    """A frame for several machines."""
    return match({"&": [field("ether", "daddr"), "01:00:00:00:00:00"]}, "00:00:00:00:00:00", "!=")


def _dhcp(sport: int, dport: int) -> list[Expression]:
    """A whole datagram of DHCP: of a later piece the kernel would read ports that are none."""
    whole = match({"&": [field("ip", "frag-off"), 0x3FFF]}, 0)
    return [whole, match(field("udp", "sport"), sport), match(field("udp", "dport"), dport)]


def speaker(wire: Wire, lan: Lan) -> list[list[Expression]]:
    """What the net qube may say it is."""
    tap = wire.tap
    return [
        *_arp_out(wire, lan),
        counted(tap, "arp", _is("arp")),
        *_question(wire, lan),
        counted(tap, "nowhere", _to_many()),
        *_own_address(wire, lan),
        counted(tap, "nowhere", match(field("ip", "daddr"), _networks(INNER))),
    ]


def _own_address(wire: Wire, lan: Lan) -> list[list[Expression]]:
    source = field("ip", "saddr")
    if lan.ip is not None:
        return [counted(wire.tap, "spoof", match(source, lan.ip, "!="))]
    return [
        counted(wire.tap, "spoof", match(source, _networks((*INNER, *NOWHERE)))),
        # This host is on that network too, where it shares the card.
        counted(wire.tap, "spoof", match(source, f"@{HOST_SET[4]}")),
    ]


def _arp_out(wire: Wire, lan: Lan) -> list[list[Expression]]:
    """ARP of the net qube about itself, slowly: as a machine of a network with others it has to ask and to answer."""
    tap, sender = wire.tap, field("arp", "saddr ip")
    if lan.ip is not None:
        mine = [match(sender, lan.ip)]
    else:
        mine = [match(sender, _networks((*INNER, *NOWHERE)), "!="), match(sender, f"@{HOST_SET[4]}", "!=")]
    return [
        [
            *arp_of(wire.mac),
            *mine,
            at_most(ARP_RATE),
            {"counter": f"{tap}-out"},
            {"fwd": {"dev": lan.interface}},
        ]
    ]


def _question(wire: Wire, lan: Lan) -> list[list[Expression]]:
    """A question of DHCP, to all, for the net qube's own MAC address: else it could use up the addresses of others."""
    if lan.ip is not None:
        return []
    chaddr: Expression = {"payload": {"base": "th", "offset": _CHADDR_BITS, "len": 48}}
    return [
        [
            match(field("ip", "daddr"), "255.255.255.255"),
            match(field("ip", "hdrlength"), 5),
            *_dhcp(_DHCP_CLIENT, _DHCP_SERVER),
            match(chaddr, int(wire.mac.replace(":", ""), 16)),
            at_most(ARP_RATE),
            {"counter": f"{wire.tap}-out"},
            {"fwd": {"dev": lan.interface}},
        ]
    ]


def uplink_part(wire: Wire, lan: Lan) -> Part:
    """What comes from the network outside: for the net qube, from no qube's address."""
    tap, source, target = wire.peer or "", field("ip", "saddr"), field("ip", "daddr")
    own = match(target, lan.ip) if lan.ip is not None else match(target, _networks((*INNER, *NOWHERE)), "!=")
    rules: tuple[list[Expression], ...] = (
        # First, as in guard.py: of a tagged frame all other comparisons see the packet in it.
        counted(tap, "type", match(field("ether", "type"), one_of(["ip", "arp"]), "!=")),
        counted(tap, "mac", match(field("ether", "daddr"), one_of([wire.mac, _BROADCAST]), "!=")),
        [
            match(field("arp", "htype"), 1),
            match(field("arp", "operation"), one_of(["request", "reply"])),
            match(field("arp", "saddr ip"), _networks(INNER), "!="),
            *([match(field("arp", "daddr ip"), lan.ip)] if lan.ip is not None else []),
            at_most(LAN_ARP_RATE),
            {"fwd": {"dev": wire.tap}},
        ],
        counted(tap, "arp", _is("arp")),
        counted(tap, "spoof", match(source, _networks((*INNER, *NOWHERE)))),
        *([_answer(wire)] if lan.ip is None else []),
        counted(tap, "nowhere", _to_many()),
        [own, {"goto": {"target": f"r{wire.qid}"}}],
        counted(tap, "nowhere"),
    )
    causes = ("type", "mac", "arp", "spoof", "nowhere")
    return Part(lan.interface, {tap: rules}, tuple(f"{tap}-{cause}" for cause in causes), {})


def _answer(wire: Wire) -> list[Expression]:
    """An answer of DHCP; which one is true is for the net qube to find out."""
    return [
        *_dhcp(_DHCP_SERVER, _DHCP_CLIENT),
        at_most(ARP_RATE),
        {"counter": f"{wire.tap}-in"},
        {"fwd": {"dev": wire.tap}},
    ]
