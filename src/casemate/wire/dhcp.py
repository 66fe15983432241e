"""DHCP as its client speaks it: questions to bytes, answers to values (RFC 2131, RFC 2132; pure).

What comes is whatever anybody on a network sends. A message is an answer to a question when it has the question's
number and MAC address; what does not fit, or offers an address that no machine outside can have, is a ProtocolError.
"""

from __future__ import annotations

import socket
import struct

from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SERVER_PORT, CLIENT_PORT = 67, 68
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK = 1, 2, 3, 4, 5, 6
MAX_SERVERS = 3
"""Limit of a net qube: name servers that it takes from a lease, as in resolv.conf(5)."""
LEAST_SECONDS, MOST_SECONDS = 60, 7 * 86400
"""Bounds of a lease. A shorter one would keep the network busy with us, a longer one would outlive changes there."""

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_COOKIE = b"\x63\x82\x53\x63"
_PAD, _END = 0, 255
_MASK, _ROUTER, _DNS = 1, 3, 6
_ASKED_ADDRESS, _LEASE, _OVERLOAD, _TYPE, _SERVER, _WISHES, _CLIENT = 50, 51, 52, 53, 54, 55, 61
_BROADCAST = 0x8000
"""Flag of a client that cannot take an answer to an address that it does not have yet."""
_NEVER = (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "10.137.0.0/16", "10.138.0.0/16", "10.139.0.0/16"
)  # fmt: skip
"""Addresses that no machine outside has: of a loopback, of a link, of many, and those between qubes."""
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")


def number(address: str) -> int:
    """An IPv4 address as a number; OSError."""
    return int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")


def is_outside(address: str) -> bool:
    """Whether a machine of a network outside can have this address."""
    for network in _NEVER:
        base, _, length = network.partition("/")
        if number(address) >> (32 - int(length)) == number(base) >> (32 - int(length)):
            return False
    return True


class Answer:
    """What a server said."""

    def __init__(self, kind: int, address: str, options: dict[int, bytes]) -> None:
        self.kind = kind
        """OFFER, ACK or NAK."""
        self.address = address
        self._options = options

    @property
    def server(self) -> str:
        """Who answers; ProtocolError where that is not said."""
        return self._addresses(_SERVER, 1)[0]

    @property
    def length(self) -> int:
        """How many bits of the address are the network's."""
        mask = int.from_bytes(self._option(_MASK, 4), "big")
        length = mask.bit_count()
        if mask != (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF or not 1 <= length <= 32:
            raise ProtocolError("DHCP: a mask of no network")
        return length

    @property
    def router(self) -> str | None:
        """The first router; None where there is none."""
        return self._addresses(_ROUTER, 1)[0] if _ROUTER in self._options else None

    @property
    def servers(self) -> list[str]:
        """Name servers."""
        return self._addresses(_DNS, MAX_SERVERS) if _DNS in self._options else []

    @property
    def seconds(self) -> int:
        """How long the address is lent."""
        lent = int.from_bytes(self._option(_LEASE, 4), "big")
        return min(max(lent, LEAST_SECONDS), MOST_SECONDS)

    def _option(self, code: int, size: int) -> bytes:
        value = self._options.get(code, b"")
        if len(value) != size:
            raise ProtocolError(f"DHCP: option {code} is missing or broken")
        return value

    def _addresses(self, code: int, most: int) -> list[str]:
        value = self._options.get(code, b"")
        if not value or len(value) % 4:
            raise ProtocolError(f"DHCP: option {code} is missing or broken")
        found = [socket.inet_ntop(socket.AF_INET, value[at : at + 4]) for at in range(0, len(value), 4)][:most]
        for address in found:
            if not is_outside(address):
                raise ProtocolError(f"DHCP: option {code} has {address}, which nobody outside has")
        return found


def question(kind: int, xid: int, mac: bytes, asked: str = "", server: str = "", own: str = "") -> bytes:
    """A DISCOVER or REQUEST. ``asked`` and ``server``: the offer that is accepted; ``own``: the address to prolong."""
    options = [(_TYPE, bytes([kind])), (_CLIENT, b"\x01" + mac)]
    for code, address in ((_ASKED_ADDRESS, asked), (_SERVER, server)):
        if address:
            options.append((code, socket.inet_pton(socket.AF_INET, address)))
    options.append((_WISHES, bytes([_MASK, _ROUTER, _DNS, _LEASE])))
    none = bytes(4)
    ciaddr = socket.inet_pton(socket.AF_INET, own) if own else none
    fixed = _FIXED.pack(1, 1, 6, 0, xid, 0, 0 if own else _BROADCAST, ciaddr, none, none, none, mac, b"", b"")
    packed = b"".join(bytes([code, len(value)]) + value for code, value in options)
    return fixed + _COOKIE + packed + bytes([_END])


def parse(data: bytes, xid: int, mac: bytes) -> Answer:
    """The answer to our question; ProtocolError for anything else."""
    if len(data) < _FIXED.size + 4 or data[_FIXED.size : _FIXED.size + 4] != _COOKIE:
        raise ProtocolError("DHCP: no message")
    op, htype, hlen, _hops, its, _secs, _flags, _ci, yiaddr, _si, _gi, chaddr, sname, file = _FIXED.unpack_from(data)
    if (op, htype, hlen, its, chaddr[:6]) != (2, 1, 6, xid, mac):
        raise ProtocolError("DHCP: an answer to somebody else")
    options = _options(data[_FIXED.size + 4 :])
    overload = options.get(_OVERLOAD, b"\0")
    for bit, field in ((1, file), (2, sname)):
        if len(overload) == 1 and overload[0] & bit:
            options = {**_options(field), **options}
    kind = options.get(_TYPE, b"")
    if len(kind) != 1 or kind[0] not in (OFFER, ACK, NAK):
        raise ProtocolError("DHCP: no answer")
    address = socket.inet_ntop(socket.AF_INET, yiaddr)
    if kind[0] != NAK and not is_outside(address):
        raise ProtocolError(f"DHCP: {address} is no address of a machine outside")
    return Answer(kind[0], address, options)


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        code = data[at]
        at += 1
        if code == _PAD:
            continue
        if code == _END:
            break
        if at >= len(data) or at + 1 + data[at] > len(data):
            raise ProtocolError("DHCP: an option is cut")
        size = data[at]
        # One that comes again goes on where it was cut (RFC 3396).
        found[code] = found.get(code, b"") + data[at + 1 : at + 1 + size]
        at += 1 + size
    return found


def _sum(data: Sequence[int]) -> int:
    """The checksum of the Internet (RFC 1071)."""
    padded = bytes(data) + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(body: bytes, source: str = "0.0.0.0") -> bytes:  # noqa: S104
    """A question as an IPv4 packet to everybody: who asks has no address, so the kernel cannot make it."""
    ends = socket.inet_pton(socket.AF_INET, source) + b"\xff\xff\xff\xff"
    size = _UDP.size + len(body)
    pseudo = ends + struct.pack("!BBH", 0, 17, size)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, size, 0) + body
    udp = udp[:6] + struct.pack("!H", _sum(pseudo + udp) or 0xFFFF) + udp[8:]
    head = _IP.pack(0x45, 0, _IP.size + size, 0, 0, 64, 17, 0, ends[:4], ends[4:])
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + udp


def body_of(packet: bytes) -> bytes:
    """The message in an IPv4 packet from a server to a client; ProtocolError for any other packet.

    Its checksum is not looked at: a host's card, or a wire without one, may leave it to be filled in.
    """
    if len(packet) < _IP.size or packet[0] >> 4 != 4:
        raise ProtocolError("DHCP: no packet")
    head, total = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    if head < _IP.size or not head + _UDP.size <= total <= len(packet) or packet[9] != 17:
        raise ProtocolError("DHCP: no datagram")
    if int.from_bytes(packet[6:8], "big") & 0x3FFF:
        raise ProtocolError("DHCP: a piece")
    source, target, size, _checksum = _UDP.unpack_from(packet, head)
    if (source, target) != (SERVER_PORT, CLIENT_PORT) or not _UDP.size <= size <= total - head:
        raise ProtocolError("DHCP: another datagram")
    return packet[head + _UDP.size : head + size]
