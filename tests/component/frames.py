"""Frames as hostile and honest guests send them, built by hand: no library would build the hostile ones."""

from __future__ import annotations

import socket
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(source: str, target: str, kind: int, body: bytes) -> str:
    return (mac(target) + mac(source) + struct.pack("!H", kind) + body).hex()


def ip4(source: str, target: str, protocol: int, body: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(body), 1, fragment, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(target),
    )  # fmt: skip
    head = head[:10] + struct.pack("!H", checksum(head + options)) + head[12:]
    return head + options + body


def _pseudo(source: str, target: str, protocol: int, length: int) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, protocol, length)


def udp(source: str, target: str, from_port: int, port: int, data: bytes = b"x") -> bytes:
    body = struct.pack("!HHHH", from_port, port, 8 + len(data), 0) + data
    total = checksum(_pseudo(source, target, 17, len(body)) + body)
    return ip4(source, target, 17, body[:6] + struct.pack("!H", total) + body[8:])


def tcp(source: str, target: str, from_port: int, port: int, flags: int = 0x02) -> bytes:
    body = struct.pack("!HHIIBBHHH", from_port, port, 1, 0, 0x50, flags, 1024, 0, 0)
    total = checksum(_pseudo(source, target, 6, len(body)) + body)
    return ip4(source, target, 6, body[:16] + struct.pack("!H", total) + body[18:])


def icmp(source: str, target: str, kind: int = 8) -> bytes:
    body = struct.pack("!BBHHH", kind, 0, 0, 1, 1) + b"ping"
    return ip4(source, target, 1, body[:2] + struct.pack("!H", checksum(body)) + body[4:])


def arp(operation: int, sender_mac: str, sender: str, target_mac: str, target: str) -> bytes:
    return struct.pack(
        "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, mac(sender_mac), socket.inet_aton(sender), mac(target_mac),
        socket.inet_aton(target),
    )  # fmt: skip


def ip6(source: str, target: str, header: int, body: bytes) -> bytes:
    return (
        struct.pack("!IHBB", 0x60000000, len(body), header, 255)
        + socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, target)
        + body
    )


def tcp6(source: str, target: str, from_port: int, port: int, flags: int = 0x02) -> bytes:
    """Without a checksum: the guard looks at none, and no stack gets it."""
    return ip6(source, target, 6, struct.pack("!HHIIBBHHH", from_port, port, 1, 0, 0x50, flags, 1024, 0, 0))


def icmp6(source: str, target: str, kind: int, data: bytes = b"\0" * 20) -> bytes:
    return ip6(source, target, 58, struct.pack("!BBH", kind, 0, 0) + data)
