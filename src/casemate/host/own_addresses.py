"""The addresses that this host itself has, and when they change."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from pathlib import Path

_NETLINK_ROUTE = 0
_IPV4_IFADDR, _IPV6_IFADDR = 0x10, 0x100  # linux/rtnetlink.h: RTMGRP_*
_LEAF = re.compile(r"\|-- ([0-9.]+)$")
_LOCAL = re.compile(r"\s+/(\d+) \w+ LOCAL\b")

_OURS = 0x80000000 | 0x00100000
"""RTF_LOCAL and RTF_ANYCAST of linux/ipv6_route.h: what is sent there is for this host."""


def own_addresses(proc: Path = Path("/proc")) -> tuple[list[str], list[str]]:
    """IPv4 and IPv6 networks that are this host: the addresses of all interfaces, loopback among them, and what routes
    of type ``local`` add (AnyIP). A network of one address is written without its length; no two overlap."""
    four = collapse_addresses(_local4((proc / "net" / "fib_trie").read_text()))
    # The table of routes also has the anycast addresses that this host answers for as a router, the list of addresses
    # those that it has not begun to use. Either file is missing where the kernel has no IPv6.
    six = [(words[0], "80") for words in _lines(proc / "net" / "if_inet6")]
    six += [(words[0], words[1]) for words in _lines(proc / "net" / "ipv6_route") if int(words[8], 16) & _OURS]
    # This file does not tell the table of a route. "Everything is local" stands in one that a transparent proxy of this
    # host has for marked packets; it says nothing of others.
    networks = [IPv6Network((int(address, 16), int(length, 16))) for address, length in six if length != "00"]
    return [_text(one) for one in four], [_text(one) for one in collapse_addresses(networks)]


def _local4(trie: str) -> Iterator[IPv4Network]:
    """The local routes of the two tables that hold for every packet; others have a line such as ``Id 100:``."""
    address, counts = "", False
    for line in trie.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            counts = line in ("Main:", "Local:")
        elif leaf := _LEAF.search(line):
            address = leaf[1]
        elif counts and (local := _LOCAL.match(line)):
            yield IPv4Network(f"{address}/{local[1]}")


def _text(network: IPv4Network | IPv6Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


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
