"""What the client of DHCP asks, and what it takes for an answer."""

from __future__ import annotations

import socket
import struct

import pytest

from casemate.wire import dhcp
from casemate.wire.errors import ProtocolError

MAC, XID = bytes.fromhex("02005e000003"), 0x01020304
SERVER, LENT = "192.0.2.1", "192.0.2.77"


def option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


FULL = {
    53: b"\x05", 54: socket.inet_aton(SERVER), 51: struct.pack("!I", 3600), 1: socket.inet_aton("255.255.255.0"),
    3: socket.inet_aton(SERVER), 6: socket.inet_aton("192.0.2.53") + socket.inet_aton("192.0.2.54"),
}  # fmt: skip


def answer(
    options: dict[int, bytes] | None = None, mac: bytes = MAC, xid: int = XID, lent: str = LENT, **more: bytes
) -> bytes:
    """An answer written from RFC 2131, figure 1."""
    fixed = struct.pack("!BBBBIHH", 2, 1, 6, 0, xid, 0, 0) + bytes(4) + socket.inet_aton(lent) + bytes(8)
    fixed += mac.ljust(16, b"\0") + more.get("sname", b"").ljust(64, b"\0") + more.get("file", b"").ljust(128, b"\0")
    packed = b"".join(option(code, value) for code, value in (FULL if options is None else options).items())
    return fixed + b"\x63\x82\x53\x63" + packed + b"\xff"


def test_a_question_is_what_the_rfc_says() -> None:
    body = dhcp.question(dhcp.REQUEST, XID, MAC, asked=LENT, server=SERVER)
    assert body[:8] == b"\x01\x01\x06\x00\x01\x02\x03\x04"
    assert body[10:12] == b"\x80\x00" and body[28:34] == MAC and body[236:240] == b"\x63\x82\x53\x63"
    for part in (b"\x35\x01\x03", option(50, socket.inet_aton(LENT)), option(54, socket.inet_aton(SERVER))):
        assert part in body[240:]
    again = dhcp.question(dhcp.REQUEST, XID, MAC, own=LENT)
    assert again[12:16] == socket.inet_aton(LENT) and again[10:12] == b"\0\0"
    assert option(50, socket.inet_aton(LENT)) not in again


def test_the_packet_around_it_has_true_checksums() -> None:
    def total(data: bytes) -> int:
        words = sum(struct.unpack(f"!{len(data) // 2}H", data))
        return (words & 0xFFFF) + (words >> 16)

    packet = dhcp.datagram(dhcp.question(dhcp.DISCOVER, XID, MAC))
    assert total(packet[:20]) == 0xFFFF
    udp = packet[20:]
    padded = udp + b"\0" * (len(udp) % 2)
    assert total(packet[12:20] + struct.pack("!BBH", 0, 17, len(udp)) + padded) == 0xFFFF
    assert packet[16:20] == b"\xff" * 4 and struct.unpack("!HH", udp[:4]) == (68, 67)


def test_an_answer_is_read() -> None:
    found = dhcp.parse(answer(), XID, MAC)
    assert (found.kind, found.address, found.server, found.length) == (dhcp.ACK, LENT, SERVER, 24)
    assert (found.router, found.servers, found.seconds) == (SERVER, ["192.0.2.53", "192.0.2.54"], 3600)


def test_options_go_on_where_they_were_cut_and_in_other_fields() -> None:
    parts = answer({53: b"\x05", 52: b"\x01"}, file=option(54, socket.inet_aton(SERVER)) + b"\xff")
    assert dhcp.parse(parts, XID, MAC).server == SERVER
    cut = answer()[:-1] + option(6, socket.inet_aton("192.0.2.55")) + b"\xff"
    assert dhcp.parse(cut, XID, MAC).servers == ["192.0.2.53", "192.0.2.54", "192.0.2.55"]


BROKEN = {
    "nothing": b"",
    "a cut one": answer()[:200],
    "another cookie": answer().replace(b"\x63\x82\x53\x63", bytes(4)),
    "another number": answer(xid=7),
    "another's MAC": answer(mac=b"\x02\0\0\0\0\1"),
    "a question": b"\x01" + answer()[1:],
    "no kind": answer({54: socket.inet_aton(SERVER)}),
    "a kind of a client": answer({**FULL, 53: b"\x03"}),
    "a cut option": answer()[:-1] + b"\x06\xff\0",
    "a code at the end": answer()[:-1] + b"\x06",
    "an address of a qube": answer(lent="10.137.0.5"),
    "an address of name servers": answer(lent="10.139.1.1"),
    "a loopback": answer(lent="127.0.0.1"),
    "everybody": answer(lent="255.255.255.255"),
    "nobody": answer(lent="0.0.0.0"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_answer_is_refused(what: str) -> None:
    with pytest.raises(ProtocolError):
        dhcp.parse(BROKEN[what], XID, MAC)


HALF = {
    "length": {1: b"\xff\0\xff\0"}, "router": {3: b"\x0a\x89\x00\x01"}, "servers": {6: b"\x7f\0\0\1"},
    "server": {54: b""}, "seconds": {51: b"\0"},
}  # fmt: skip


@pytest.mark.parametrize("what", HALF)
def test_half_of_an_answer_is_none(what: str) -> None:
    found = dhcp.parse(answer({**FULL, **HALF[what]}), XID, MAC)
    with pytest.raises(ProtocolError):
        getattr(found, what)


def test_bounds_of_a_lease() -> None:
    for told, used in ((0, dhcp.LEAST_SECONDS), (1000, 1000), (0xFFFFFFFF, dhcp.MOST_SECONDS)):
        assert dhcp.parse(answer({**FULL, 51: struct.pack("!I", told)}), XID, MAC).seconds == used
    many = {**FULL, 6: socket.inet_aton(SERVER) * 60}
    assert len(dhcp.parse(answer(many), XID, MAC).servers) == dhcp.MAX_SERVERS


def test_only_a_whole_datagram_from_a_server_has_a_message() -> None:
    asked = dhcp.datagram(b"question")
    udp = struct.pack("!HHHH", 67, 68, 8 + 4, 0) + b"body"
    packet = asked[:2] + struct.pack("!H", 20 + len(udp)) + asked[4:20] + udp
    assert dhcp.body_of(packet + b"padding") == b"body"
    for at, wrong in ((0, b"\x65"), (0, b"\x41"), (2, b"\xff\xff"), (6, b"\x20"), (9, b"\6"), (24, b"\xff\xff")):
        with pytest.raises(ProtocolError):
            dhcp.body_of(packet[:at] + wrong + packet[at + len(wrong) :])
    for one in (asked, packet[:30]):
        with pytest.raises(ProtocolError):
            dhcp.body_of(one)
