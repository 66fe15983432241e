"""DNS messages, as far as rules by name need them (pure): the question of a query, the addresses of an answer.

Format: RFC 1035, section 4. Both come from strangers, so every length and pointer is checked. Nothing is rewritten but
the number of a message: a resolver gets the query, and a qube the answer, as it was sent.
"""

from __future__ import annotations

import socket
import struct

from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

A, CNAME, AAAA = 1, 5, 28
INTERNET = 1
MAX_UDP = 4096
MAX_NAME = 255
MAX_RECORDS = 256
MAX_ALIASES = 16
"""CNAMEs followed from the name that was asked; resolvers give up earlier."""
MAX_ADDRESSES = 64
"""Addresses of one answer that are taken; the others are not reachable by a rule with that name."""
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_QR, _OPCODE, _TC = 0x8000, 0x7800, 0x0200
_MAX_JUMPS = 32


class Question:
    """What is asked: a name in lower case without the last dot, a type, a class. ``number`` is that of the message."""

    __slots__ = ("end", "kind", "klass", "name", "number")

    def __init__(self, number: int, name: str, kind: int, klass: int, end: int) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.klass = klass
        self.end = end

    def same(self, other: Question) -> bool:
        """Whether both ask for the same."""
        return (self.name, self.kind, self.klass) == (other.name, other.kind, other.klass)


def _name(data: bytes, at: int) -> tuple[str, int]:
    """The name at a place, and where what follows it begins."""
    labels: list[str] = []
    end, jumps, size = -1, 0, 0
    while True:
        if at >= len(data):
            raise ProtocolError("DNS: a name is cut")
        length = data[at]
        if length & 0xC0 == 0xC0:
            if at + 1 >= len(data):
                raise ProtocolError("DNS: a pointer is cut")
            if end < 0:
                end = at + 2
            target = (length & 0x3F) << 8 | data[at + 1]
            jumps += 1
            if jumps > _MAX_JUMPS or target >= at:
                raise ProtocolError("DNS: a pointer does not point back")
            at = target
        elif length & 0xC0:
            raise ProtocolError("DNS: unknown form of a label")
        elif length == 0:
            return ".".join(labels), at + 1 if end < 0 else end
        else:
            label = data[at + 1 : at + 1 + length]
            size += length + 1
            if len(label) != length or size > MAX_NAME:
                raise ProtocolError("DNS: a name is cut or too long")
            # A dot inside a label would make one name look like another.
            if any(not 0x21 <= byte <= 0x7E or byte == 0x2E for byte in label):
                raise ProtocolError("DNS: a name with odd characters")
            labels.append(label.decode("ascii").lower())
            at += 1 + length


def _question(data: bytes, answer: bool) -> Question:
    if len(data) < _HEADER.size:
        raise ProtocolError("DNS: a message is cut")
    number, flags, questions, _answers, _authority, _more = _HEADER.unpack_from(data)
    if bool(flags & _QR) != answer or flags & _OPCODE or questions != 1:
        raise ProtocolError("DNS: not one ordinary question")
    name, at = _name(data, _HEADER.size)
    if at + 4 > len(data):
        raise ProtocolError("DNS: a question is cut")
    kind, klass = struct.unpack_from("!HH", data, at)
    return Question(number, name, kind, klass, at + 4)


def parse_query(data: bytes) -> Question:
    """What a query asks; ProtocolError for anything but one ordinary question."""
    return _question(data, answer=False)


def parse_answer(data: bytes, asked: Question) -> list[tuple[str, int]]:
    """Addresses and seconds to live that an answer gives to the name that was asked; ProtocolError when it answers
    something else.

    Aliases are followed from that name on. A record of any other name counts for nothing, whoever put it there.
    """
    found = _question(data, answer=True)
    if not found.same(asked):
        raise ProtocolError("DNS: an answer to another question")
    count = _HEADER.unpack_from(data)[3]
    if count > MAX_RECORDS:
        raise ProtocolError("DNS: too many records")
    aliases: dict[str, tuple[str, int]] = {}
    addresses: dict[str, list[tuple[str, int]]] = {}
    at = found.end
    for _record in range(count):
        owner, at = _name(data, at)
        if at + _RECORD.size > len(data):
            raise ProtocolError("DNS: a record is cut")
        kind, klass, ttl, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        body = data[at : at + length]
        if len(body) != length:
            raise ProtocolError("DNS: a record is cut")
        if klass == INTERNET and kind == CNAME:
            aliases.setdefault(owner, (_name(data, at)[0], ttl))
        elif klass == INTERNET and (kind, length) in ((A, 4), (AAAA, 16)):
            family = socket.AF_INET if kind == A else socket.AF_INET6
            addresses.setdefault(owner, []).append((socket.inet_ntop(family, body), ttl))
        at += length
    return _follow(asked.name, aliases, addresses)


def _follow(
    name: str, aliases: dict[str, tuple[str, int]], addresses: dict[str, list[tuple[str, int]]]
) -> list[tuple[str, int]]:
    least = 0xFFFFFFFF
    for _step in range(MAX_ALIASES):
        if name in addresses or name not in aliases:
            return [(address, min(least, ttl)) for address, ttl in addresses.get(name, ())][:MAX_ADDRESSES]
        name, ttl = aliases[name]
        least = min(least, ttl)
    return []


def with_number(data: bytes, number: int) -> bytes:
    """The same message under another number."""
    return struct.pack("!H", number) + data[2:]


def is_cut(data: bytes) -> bool:
    """Whether an answer says that it did not fit."""
    return len(data) >= 4 and bool(data[2] << 8 & _TC)


def with_room(data: bytes, size: int) -> bytes:
    """The same query, which also says that an answer by UDP may have ``size`` bytes (EDNS, RFC 6891). One that has
    records of its own beside the question stays as it is."""
    if any(data[6 : _HEADER.size]):
        return data
    return data[:11] + b"\1" + data[12:] + b"\0" + struct.pack("!HHIH", 41, size, 0, 0)


def query(name: str, kind: int, number: int) -> bytes:
    """A query of our own."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.rstrip(".").split("."))
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, INTERNET)


def failure(data: bytes, asked: Question, code: int) -> bytes:
    """An answer that says only that there is none: ``code`` is 2 (the server failed) or 5 (refused)."""
    flags = _QR | 0x0080 | code | (struct.unpack_from("!H", data, 2)[0] & 0x0100)
    return _HEADER.pack(asked.number, flags, 1, 0, 0, 0) + data[_HEADER.size : asked.end]


def matches(host: str, name: str) -> bool:
    """Whether the host of a rule, perhaps ``*.example.org``, is this name. The star stands for any labels, one at
    least."""
    host = host.rstrip(".").lower()
    if host.startswith("*."):
        return name.endswith(host[1:]) and len(name) > len(host) - 1
    return host == name


def servers(text: str) -> list[str]:
    """The name servers of a resolv.conf(5), IPv4 only."""
    found: list[str] = []
    for line in text.split("\n"):
        words: Sequence[str] = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                socket.inet_pton(socket.AF_INET, words[1])
            except OSError:
                continue
            found.append(words[1])
    return found[:3]
