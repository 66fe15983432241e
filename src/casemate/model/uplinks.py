"""How a net qube reaches a network outside: the features ``net.uplink`` and, with a card, ``net.uplink-*``.

::

    net.uplink  pasta         as a program of this host (any user)
                card:NAME     by a card of this host, which the net qube has alone meanwhile (root)
                shared:NAME   by a card of this host that stays with the host (root)

With a card the net qube is a machine of the network outside: it asks for an address by DHCP, or has what
``net.uplink-ip``, ``net.uplink-gateway`` and ``net.uplink-dns`` say.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network
from uuid import UUID

from casemate.wire.errors import ValueInvalidError, printable

UPLINK = "net.uplink"
"""Feature of a net qube without a net qube of its own."""
ADDRESS, GATEWAY, SERVERS = "net.uplink-ip", "net.uplink-gateway", "net.uplink-dns"
"""Features of a net qube with a card: its address with the length of its network, its router, its name servers."""
INNER = ("10.137.0.0/16", "10.138.0.0/16", "10.139.0.0/16")
"""Networks between qubes: a network outside cannot have their addresses."""
MAX_SERVERS = 3
"""Limit of a net qube: name servers that it asks, as in resolv.conf(5)."""

PASTA, CARD, SHARED = "pasta", "card", "shared"
_CARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
"""Names of interfaces that may be given, at most 15 characters as in the kernel. None can be read as an option, as a
path, or as a sign of nft's language."""
_WIRES = re.compile(r"[udx][0-9]+|lo")
"""Names that interfaces of the wire room have."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """A way out: what kind, and by which card of the host (empty for ``pasta``)."""

    kind: str
    card: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.card}" if self.card else self.kind


@dataclass(frozen=True, slots=True)
class Static:
    """What a net qube with a card has instead of asking by DHCP."""

    address: IPv4Interface
    gateway: IPv4Address | None
    servers: tuple[IPv4Address, ...]

    def __str__(self) -> str:
        """Words for the agent: address/length, router or ``-``, name servers."""
        return " ".join([str(self.address), str(self.gateway or "-"), *map(str, self.servers)])


def parse_uplink(text: str) -> Uplink:
    """The value of ``net.uplink``; ValueInvalidError."""
    kind, colon, card = text.partition(":")
    if text == PASTA:
        return Uplink(PASTA)
    if not colon or kind not in (CARD, SHARED):
        raise ValueInvalidError(f"{UPLINK} is pasta, card:NAME or shared:NAME, not {printable(text, 80)!r}")
    if not _CARD.fullmatch(card) or _WIRES.fullmatch(card):
        raise ValueInvalidError(f"{UPLINK}: {printable(card, 80)!r} is no name of a card")
    return Uplink(kind, card)


def _address(name: str, text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise ValueInvalidError(f"{name}: {printable(text, 80)!r} is no IPv4 address") from None
    _outside(name, address)
    return address


def _outside(name: str, address: IPv4Address) -> None:
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_reserved:
        raise ValueInvalidError(f"{name}: {address} is no address of a machine")
    if any(address in IPv4Network(inner) for inner in INNER):
        raise ValueInvalidError(f"{name}: {address} is an address between qubes")


def _interface(text: str) -> IPv4Interface:
    try:
        found = IPv4Interface(text)
    except ValueError:
        found = None
    if found is None or "/" not in text or not text.partition("/")[2].isdecimal() or found.network.prefixlen == 0:
        raise ValueInvalidError(f"{ADDRESS} is ADDRESS/LENGTH, such as 192.0.2.7/24, not {printable(text, 80)!r}")
    _outside(ADDRESS, found.ip)
    if found.network.prefixlen < 31 and found.ip in (found.network.network_address, found.network.broadcast_address):
        raise ValueInvalidError(f"{ADDRESS}: {found.ip} is the network {found.network} itself, or all of it")
    return found


def _servers(text: str) -> tuple[IPv4Address, ...]:
    servers = tuple(_address(SERVERS, word) for word in text.split())
    if len(servers) > MAX_SERVERS:
        raise ValueInvalidError(f"{SERVERS}: at most {MAX_SERVERS} name servers, not {len(servers)}")
    return servers


def check(name: str, value: str) -> None:
    """Refuse a value of one of these features that means nothing; empty is fine, and other features are."""
    if not value:
        return
    if name == UPLINK:
        parse_uplink(value)
    elif name == ADDRESS:
        _interface(value)
    elif name == GATEWAY:
        _address(GATEWAY, value)
    elif name == SERVERS:
        _servers(value)


def uplink_of(features: Mapping[str, str]) -> Uplink | None:
    """The uplink that features ask for; None where they ask for none, or for something that is none."""
    try:
        return parse_uplink(features[UPLINK]) if features.get(UPLINK) else None
    except ValueInvalidError:
        return None


def static_of(features: Mapping[str, str]) -> Static | None:
    """The address that features give to a net qube with a card; None: it asks for one. ValueInvalidError for some that
    do not fit together."""
    gateway, servers = features.get(GATEWAY, ""), features.get(SERVERS, "")
    if not features.get(ADDRESS):
        if gateway or servers:
            raise ValueInvalidError(f"{GATEWAY if gateway else SERVERS} means nothing without {ADDRESS}")
        return None
    address = _interface(features[ADDRESS])
    router = _address(GATEWAY, gateway) if gateway else None
    if router is not None and (router not in address.network or router == address.ip):
        raise ValueInvalidError(f"{GATEWAY}: {router} is not another address of {address.network}")
    return Static(address, router, _servers(servers))


def mac_of(uuid: UUID) -> str:
    """The MAC address of a net qube on a network outside, where none is set: a locally administered one (IEEE 802),
    the same at each start, and no other qube's, whichever hosts share the network."""
    digest = hashlib.sha256(b"casemate uplink " + uuid.bytes).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
