"""The addresses that this host itself has, and when they change."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path

_NETLINK_ROUTE = 0
_IPV4_IFADDR, _IPV6_IFADDR = 0x10, 0x100  # linux/rtnetlink.h: RTMGRP_*
_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")

_OURS = 0x80000000 | 0x00100000
"""RTF_LOCAL and RTF_ANYCAST of linux/ipv6_route.h: what is sent there is for this host."""


def own_addresses(proc: Path = Path("/proc")) -> tuple[list[str], list[str]]:
    """IPv4 and IPv6 addresses of all interfaces, loopback among them."""
    four = sorted(set(_LOCAL.findall((proc / "net" / "fib_trie").read_text())))
    # The table of routes also has the anycast addresses that this host answers for as a router, the list of addresses
    # those that it has not begun to use. Either file is missing where the kernel has no IPv6.
    found = {words[0] for words in _lines(proc / "net" / "if_inet6")}
    found |= {
        words[0] for words in _lines(proc / "net" / "ipv6_route") if words[1] == "80" and int(words[8], 16) & _OURS
    }
    return four, sorted(str(IPv6Address(int(address, 16))) for address in found)


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []


class AddressWatch:
    """Calls back after each change. Owns a netlink socket; what it says is not read, only that it says something."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
        self._socket.bind((0, _IPV4_IFADDR | _IPV6_IFADDR))
        asyncio.get_running_loop().add_reader(self._socket, self._heard)

    def _heard(self) -> None:
        try:
            while self._socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # ENOBUFS: more changes than the socket holds, which is a change as well
        self._changed()

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
