"""A small server of DHCP for one network of a test: ``dhcp_server.py INTERFACE OWN LENT SECONDS [HOW]``.

It lends one address, with itself as router and name server. HOW: ``hostile`` sends broken answers and answers to others
before each true one; ``nak`` takes the address back when it is to be prolonged, and lends the next one then. Each
question and answer is a line of its standard output. It is written from RFC 2131 and shares no code with the client.
"""

from __future__ import annotations

import socket
import struct
import sys

KINDS = {1: "discover", 3: "request"}
COOKIE = b"\x63\x82\x53\x63"


def options_of(message: bytes) -> dict[int, bytes]:
    found, at = {}, 240
    while message[at] != 255:
        code, size = message[at], message[at + 1]
        found[code] = message[at + 2 : at + 2 + size]
        at += 2 + size
    return found


def answer(message: bytes, kind: int, lent: str, own: str, seconds: int) -> bytes:
    """OFFER (2), ACK (5) or NAK (6)."""
    options = [(53, bytes([kind])), (54, socket.inet_aton(own))]
    if kind != 6:
        options += [
            (51, struct.pack("!I", seconds)), (1, socket.inet_aton("255.255.255.0")), (3, socket.inet_aton(own)),
            (6, socket.inet_aton(own)),
        ]  # fmt: skip
    packed = b"".join(bytes([code, len(value)]) + value for code, value in options)
    mine = socket.inet_aton("0.0.0.0" if kind == 6 else lent)
    return b"\x02" + message[1:16] + mine + message[20:236] + COOKIE + packed + b"\xff"


def broken(message: bytes, true: bytes) -> list[bytes]:
    """Answers that are none."""
    other_number, other_mac = bytearray(true), bytearray(true)
    other_number[4] ^= 0xFF
    other_mac[28] ^= 0xFF
    inner = bytearray(true)
    inner[16:20] = socket.inet_aton("10.137.0.9")
    loopback = bytearray(true)
    loopback[16:20] = socket.inet_aton("127.0.0.1")
    return [b"", b"\x02" * 239, true[:245], bytes(other_number), bytes(other_mac), bytes(inner), bytes(loopback)]


def main(interface: str, own: str, lent: str, seconds: str, how: str = "") -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    server.bind(("", 67))
    print("listening", flush=True)
    while True:
        message, _sender = server.recvfrom(2048)
        options = options_of(message)
        asked = KINDS.get(options[53][0], "?")
        kind = {"discover": 2, "request": 5}.get(asked, 0)
        prolongs = message[12:16] != bytes(4)
        if how == "nak" and prolongs:
            kind = 6
            head, _, last = lent.rpartition(".")
            lent = f"{head}.{int(last) + 1}"
        print(asked, {2: "offer", 5: "ack", 6: "nak"}[kind], "prolong" if prolongs else "new", flush=True)
        true = answer(message, kind, lent, own, int(seconds))
        for data in [*(broken(message, true) if how == "hostile" else []), true]:
            server.sendto(data, ("255.255.255.255", 68))


if __name__ == "__main__":
    main(*sys.argv[1:])
