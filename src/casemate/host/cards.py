"""Takes Ethernet cards of this host into the wire room and back, or a part of one, by rtnetlink. As root only.

::

    this host                          the wire room
      eth1 ─────── take ─────────────▶ eth1            it keeps its name, its MAC address and its settings
           ◀────── give_back ─────────
      eth2 ─────── share ────────────▶ x3 (macvlan)    eth2 stays; x3 sends by it, with a MAC address of its own

A card in the room has the name that it has here: if all that runs in the room is killed, the kernel gives a card of
hardware back by itself, and then it is back under its name (network_namespaces(7)). An interface that is software
would end with the room, so a process of ours holds the room while a card is in it (``network/card_uplink.py``).

All functions block for some milliseconds and change the namespace of their thread, so they are run in a thread that
ends afterwards: ``in_thread``.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from casemate.wire.errors import CasemateError

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_ETHERNET = 1  # ARPHRD_ETHER
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_MAIN, _UNICAST = 254, 1  # RT_TABLE_MAIN, RTN_UNICAST
_SIOCGIWNAME = 0x8B01  # linux/wireless.h
_GROUP_LINK = 1  # RTMGRP_LINK
_MOVABLE = (None, "veth")
"""Kinds of interfaces that are cards of their own: hardware has no kind. ``veth``: the end of a cable of software."""
_SHAREABLE = (*_MOVABLE, "bond", "team", "vlan", "bridge", "dummy")
"""Kinds that a macvlan can stand on."""
_SPARE_NAMES = tuple(f"card{number}" for number in range(100))
"""What a card is called whose name was given to another interface meanwhile."""
_libc = ctypes.CDLL(None, use_errno=True)


class CardError(CasemateError):
    """A card cannot be given to a net qube, or not be taken back."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card of this host as it was found."""

    name: str
    index: int
    address: str
    """Its MAC address."""
    up: bool
    """Whether the host used it; it is up again when it comes back."""


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run in a thread of its own, which ends: it may have entered another namespace.

    Who is cancelled meanwhile waits for the end of it all the same: else it would overtake what undoes it.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="cards", daemon=True).start()
    done = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        raise


def _enter(net: int) -> None:
    if _libc.setns(net, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise CardError(f"the wire room cannot be entered: {os.strerror(error)}")


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    netlink = IPRoute()
    try:
        yield netlink
    finally:
        netlink.close()


@contextmanager
def _own_namespace() -> Iterator[int]:
    """A descriptor of the namespace that this process is in, whatever its threads have entered."""
    fd = os.open(f"/proc/{os.getpid()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _links(netlink: IPRoute) -> dict[str, Any]:
    return {str(link.get_attr("IFLA_IFNAME")): link for link in netlink.get_links()}


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    kind = None if info is None else info.get_attr("IFLA_INFO_KIND")
    return None if kind is None else str(kind)


def _address(link: Any) -> str:
    return str(link.get_attr("IFLA_ADDRESS"))


def _find(netlink: IPRoute, name: str, address: str) -> Any:
    """The interface of this name, if it has that MAC address too; else None. The number by which a room is found again
    may be another namespace's by then, and what is in there is none of our business."""
    link = _links(netlink).get(name)
    return link if link is not None and _address(link) == address else None


def _cause(error: Exception) -> str:
    return str(error.args[-1]) if error.args else str(error)


# -- may it be given?


def look(name: str, moving: bool) -> Card:
    """The card of this name; CardError, in a person's words, when it cannot be moved, or else be shared."""
    with _netlink() as netlink:
        links = _links(netlink)
        link = links.get(name)
        if link is None:
            raise CardError(f"this host has no card {name}")
        if link["ifi_type"] != _ETHERNET or link["flags"] & _IFF_LOOPBACK:
            raise CardError(f"{name} is no Ethernet card")
        if _is_wireless(name):
            raise CardError(f"{name} is a wireless card, which neither moves nor lets others send by it; use pasta")
        kind = _kind(link)
        if kind not in _SHAREABLE:
            raise CardError(f"{name} is no Ethernet card: it is an interface of kind {kind}")
        master = link.get_attr("IFLA_MASTER")
        if master is not None:
            above = next((other for other, found in links.items() if found["index"] == master), "another interface")
            raise CardError(f"{name} is in use: it is a part of {above}")
        if moving:
            _may_move(netlink, name, link, links)
        return Card(name, link["index"], _address(link), bool(link["flags"] & _IFF_UP))


def _may_move(netlink: IPRoute, name: str, link: Any, links: dict[str, Any]) -> None:
    kind = _kind(link)
    if kind not in _MOVABLE:
        raise CardError(f"{name} is not a card but a {kind} of this host: share it (net.uplink shared:{name})")
    for other, found in links.items():
        # A veth names its other end there, and that is not above it.
        below = found.get_attr("IFLA_LINK") == link["index"] and found.get_attr("IFLA_LINK_NETNSID") is None
        if below and _kind(found) != "veth":
            raise CardError(f"{name} is in use: {other} is above it")
    if _ways(netlink, links) == {link["index"]}:
        raise CardError(
            f"{name} is this host's only way to the network: share it (net.uplink shared:{name}), or use another card"
        )


def _ways(netlink: IPRoute, links: dict[str, Any]) -> set[int]:
    """The interfaces by which this host reaches others: those of default routes; where there are none, those with an
    address."""
    found: set[int] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in netlink.get_routes(family=family):
            if route["dst_len"] != 0 or route["type"] != _UNICAST or (route.get_attr("RTA_TABLE") or _MAIN) != _MAIN:
                continue
            hops = route.get_attr("RTA_MULTIPATH") or []
            found |= {hop["oif"] for hop in hops} | {route.get_attr("RTA_OIF")}
    found -= {None, 0}
    if found:
        return found
    loopbacks = {link["index"] for link in links.values() if link["flags"] & _IFF_LOOPBACK}
    # Addresses that are local to a link reach no network; every card has one of IPv6 (scope 253).
    return {one["index"] for one in netlink.get_addr() if one["scope"] != 253} - loopbacks


def _is_wireless(name: str) -> bool:
    if any(Path("/sys/class/net", name, entry).exists() for entry in ("phy80211", "wireless")):
        return True
    # Where /sys is that of another namespace. The kernel answers this of wireless interfaces alone (netdevice(7)).
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCGIWNAME, struct.pack("16s16x", name.encode()))
        except OSError:
            return False
    return True


# -- there and back


def take(card: Card, net: int, mac: str) -> None:
    """Move a card into the room; it is down there. ``mac``: what the net qube has, which the card is to listen for.

    CardError, and it is where it was."""
    with _netlink() as netlink:
        try:
            netlink.link("set", index=card.index, net_ns_fd=net)
        except (NetlinkError, OSError) as error:
            raise CardError(f"{card.name} cannot be taken from this host: {_cause(error)}") from None
    with _own_namespace() as own:
        _enter(net)
        with _netlink() as netlink:
            link = _links(netlink).get(card.name)
            if link is None:
                raise CardError(f"{card.name} vanished while it was given")
            try:
                # One more address in the card's filter; its own stays. The kernel forgets it when the card goes back.
                netlink.fdb("add", ifindex=link["index"], lladdr=mac)
            except (NetlinkError, OSError) as error:
                if getattr(error, "code", 0) != errno.EEXIST:  # an earlier daemon got this far
                    netlink.link("set", index=link["index"], net_ns_fd=own)
                    raise CardError(f"{card.name} cannot listen for {mac}: {_cause(error)}") from None


def share(card: Card, net: int, name: str, mac: str) -> None:
    """Make an interface ``name`` in the room, down, that sends and receives by a card that stays; CardError.

    Of mode ``private``: several on one card, those of other programs among them, do not reach each other.
    """
    with _netlink() as netlink:
        try:
            netlink.link(
                "add", ifname=name, kind="macvlan", link=card.index, macvlan_mode="private", address=mac, net_ns_fd=net
            )
        except (NetlinkError, OSError) as error:
            raise CardError(f"{card.name} cannot be shared: {_cause(error)}") from None


def give_back(name: str, address: str, net: int | None, up: bool) -> str | None:
    """Have a card in this host's namespace again, up if it was; the name that it has now, which is another one when an
    interface of its name was made meanwhile. None: there is no such card any more. CardError.

    ``address`` is its MAC address. ``net`` None: the room has ended, so a card of hardware is here already.
    """
    returned = (None if net is None else _out_of(name, address, net)) or name
    with _netlink() as netlink:
        link = _find(netlink, returned, address)
        if link is None:
            return None
        if up:
            try:
                netlink.link("set", index=link["index"], state="up")
            except (NetlinkError, OSError) as error:
                raise CardError(f"{returned} is back, but stays down: {_cause(error)}") from None
    return returned


def _out_of(name: str, address: str, net: int) -> str | None:
    """Move a card out of the room; its name then. None where it is not in there."""
    answer: list[str | None] = [None]
    error: list[Exception] = []

    def work() -> None:
        try:
            _enter(net)
            answer[0] = _move_out(name, address)
        except Exception as failure:
            error.append(failure)

    # The caller goes on in this host's namespace.
    thread = threading.Thread(target=work, name="card out", daemon=True)
    thread.start()
    thread.join()
    if error:
        raise error[0]
    return answer[0]


def _move_out(name: str, address: str) -> str | None:
    with _own_namespace() as own, _netlink() as netlink:
        link = _find(netlink, name, address)
        if link is None:
            return None
        netlink.link("set", index=link["index"], state="down")
        for wanted in (name, *_SPARE_NAMES):
            try:
                netlink.link("set", index=link["index"], net_ns_fd=own, ifname=wanted)
                return wanted
            except (NetlinkError, OSError) as error:
                if getattr(error, "code", 0) != errno.EEXIST:  # the name is another interface's now
                    raise CardError(f"{name} cannot be given back: {_cause(error)}") from None
    raise CardError(f"{name} cannot be given back: its name and all spare names are taken")


def names_in(net: int) -> frozenset[str]:
    """The interfaces that are in the room."""
    _enter(net)
    with _netlink() as netlink:
        return frozenset(_links(netlink))


def remove(name: str, address: str, net: int) -> None:
    """Remove an interface that shares a card from the room; absent is fine. CardError."""
    _enter(net)
    with _netlink() as netlink:
        link = _find(netlink, name, address)
        if link is not None and _kind(link) == "macvlan":
            try:
                netlink.link("del", index=link["index"])
            except (NetlinkError, OSError) as error:
                raise CardError(f"{name} cannot be removed: {_cause(error)}") from None


def link_events(net: int | None) -> socket.socket:
    """A socket that becomes readable when interfaces come, go or change, in the room or (None) in this namespace."""
    if net is not None:
        _enter(net)
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    events.bind((0, _GROUP_LINK))
    return events
