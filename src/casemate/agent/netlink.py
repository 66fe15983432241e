"""Sets up interfaces by rtnetlink(7): one socket, a few messages, no program. Needs the standard library alone."""

from __future__ import annotations

import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR = struct.Struct("=i")
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type

_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400  # linux/netlink.h: NLM_F_*
_NEW_LINK, _NEW_ADDRESS, _DEL_ADDRESS, _NEW_ROUTE, _DEL_ROUTE, _NEW_NEIGHBOUR, _DEL_NEIGHBOUR = (
    16,
    20,
    21,
    24,
    25,
    28,
    29,
)
_UP = 0x1
_PERMANENT = 0x80  # NUD_PERMANENT
_TABLE_MAIN, _PROTOCOL_STATIC, _UNICAST = 254, 4, 1
_SCOPE_LINK, _SCOPE_UNIVERSE = 253, 0
_ONLINK = 0x4  # RTNH_F_ONLINK
_NO_DAD = 0x02  # IFA_F_NODAD: the address is ours by decree, so nobody is asked whether he has it
GROUP_LINK = 1  # RTMGRP_LINK


def packed(address: str) -> tuple[int, bytes]:
    """The family and the bytes of an address; OSError for text that is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _index(number: int) -> bytes:
    return struct.pack("=i", number)


class Netlink:
    """A connection to the kernel's tables of interfaces, addresses, routes and neighbours. Errors are OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._sequence = 0

    def _ask(self, kind: int, flags: int, body: bytes, allowed: Iterable[int] = ()) -> None:
        self._sequence += 1
        message = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, self._sequence, 0) + body
        self._socket.send(message)
        answer = self._socket.recv(65536)
        (status,) = _ERROR.unpack_from(answer, _HEADER.size)
        if status < 0 and -status not in allowed:
            raise OSError(-status, os.strerror(-status))

    def rename(self, index: int, name: str) -> None:
        """Give an interface another name, which takes it down."""
        self.set_up(index, False)
        self._ask(_NEW_LINK, 0, _LINK.pack(0, 0, index, 0, 0) + _attribute(3, name.encode() + b"\0"))

    def set_up(self, index: int, up: bool = True) -> None:
        """Let an interface send and receive, or not."""
        self._ask(_NEW_LINK, 0, _LINK.pack(0, 0, index, _UP if up else 0, _UP))

    def address(self, index: int, address: str, add: bool = True, length: int | None = None) -> None:
        """Give an interface an address: alone (/32, /128), or in a network of ``length`` bits. Or take it away."""
        family, data = packed(address)
        flags = _NO_DAD if family == socket.AF_INET6 else 0
        bits = len(data) * 8 if length is None else length
        body = _ADDRESS.pack(family, bits, flags, 0, index) + _attribute(1, data) + _attribute(2, data)
        if add:
            self._ask(_NEW_ADDRESS, _CREATE | _REPLACE, body)
        else:
            self._ask(_DEL_ADDRESS, 0, body, (99,))  # EADDRNOTAVAIL: it is not there

    def neighbour(self, index: int, address: str, mac: str, add: bool = True) -> None:
        """Say once and for all which MAC address a neighbour has, so that nobody is ever asked; or forget it."""
        family, data = packed(address)
        body = _NEIGHBOUR.pack(family, index, _PERMANENT, 0, 0) + _attribute(1, data)
        if add:
            self._ask(_NEW_NEIGHBOUR, _CREATE | _REPLACE, body + _attribute(2, bytes.fromhex(mac.replace(":", ""))))
        else:
            self._ask(_DEL_NEIGHBOUR, 0, body, (2,))  # ENOENT

    def route(
        self, index: int, to: str | None, via: str | None = None, source: str | None = None, add: bool = True
    ) -> None:
        """A route to one address, directly; or (``to`` None) to everybody, by the gateway ``via``."""
        known = to or via
        assert known is not None
        family, _data = packed(known)
        length = 0 if to is None else 32 if family == socket.AF_INET else 128
        scope = _SCOPE_UNIVERSE if via is not None or family == socket.AF_INET6 else _SCOPE_LINK
        flags = _ONLINK if via is not None else 0
        body = _ROUTE.pack(family, length, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, scope, _UNICAST, flags)
        for kind, address in ((1, to), (5, via), (7, source)):
            if address is not None:
                body += _attribute(kind, packed(address)[1])
        body += _attribute(4, _index(index))
        if add:
            self._ask(_NEW_ROUTE, _CREATE | _REPLACE, body)
        else:
            self._ask(_DEL_ROUTE, 0, body, (3,))  # ESRCH


def link_events() -> socket.socket:
    """A socket that becomes readable when interfaces come, go or change."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    events.bind((0, GROUP_LINK))
    return events


def interfaces() -> dict[str, tuple[str, int]]:
    """Names and indexes of Ethernet interfaces, by MAC address."""
    found = {}
    for name in os.listdir("/sys/class/net"):
        try:
            with open(f"/sys/class/net/{name}/address", encoding="ascii") as file:
                mac = file.read().strip()
            with open(f"/sys/class/net/{name}/ifindex", encoding="ascii") as file:
                index = int(file.read())
        except OSError:
            continue  # it has just gone
        if name != "lo":
            found[mac] = (name, index)
    return found
