"""Makes and removes the taps of the wire room and reads their counters, by rtnetlink."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from casemate.wire.errors import CasemateError

_REMOVABLE = ("tun", "macvlan")
"""Kinds of interfaces that this host made for the room."""


class LinkError(CasemateError):
    """The kernel refused a tap."""


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap to make. ``uid`` may open it without being root; None: only who made it."""

    name: str
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went over one interface, as seen by what stands behind it: ``received`` came to the qube."""

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int
    received_dropped: int
    """Frames that the qube did not fetch in time, or could not: its machine does not run."""


class Links:
    """The interfaces of the namespace that this process is in."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def names(self) -> dict[str, int]:
        """All interfaces but the loopback, by name, with their indexes."""
        return {name: link["index"] for link in self._netlink.get_links() if (name := _name(link)) != "lo"}

    def make(self, taps: Iterable[Tap]) -> list[str]:
        """Make those taps that are not there, down; the names of the new ones. If one fails, none is left."""
        there, made = self.names(), []
        try:
            for tap in taps:
                if tap.name in there:
                    continue
                more: dict[str, Any] = {} if tap.uid is None else {"uid": tap.uid}
                try:
                    self._netlink.link("add", ifname=tap.name, kind="tuntap", mode="tap", **more)
                except (NetlinkError, OSError) as error:
                    raise LinkError(f"the tap {tap.name} cannot be made: {_cause(error)}") from None
                made.append(tap.name)
        except LinkError:
            self.remove(made)
            raise
        return made

    def up(self, names: Iterable[str]) -> None:
        """Let frames pass."""
        there = self.names()
        for name in names:
            try:
                self._netlink.link("set", index=there[name], state="up")
            except KeyError:
                raise LinkError(f"there is no interface {name}") from None
            except (NetlinkError, OSError) as error:
                raise LinkError(f"{name} cannot be used: {_cause(error)}") from None

    def remove(self, names: Iterable[str]) -> None:
        """Remove taps, and interfaces that share a card; absent is fine. A card itself stays, whatever is asked."""
        there = {_name(link): link["index"] for link in self._netlink.get_links() if _kind(link) in _REMOVABLE}
        for name in names:
            if name in there:
                try:
                    self._netlink.link("del", index=there[name])
                except (NetlinkError, OSError) as error:
                    if getattr(error, "code", 0) != 19:  # ENODEV: it went by itself
                        raise LinkError(f"{name} cannot be removed: {_cause(error)}") from None

    def traffic(self) -> Mapping[str, Traffic]:
        """Counters of all interfaces. A tap transmits what its qube receives."""
        found = {}
        for link in self._netlink.get_links():
            counters = link.get_attr("IFLA_STATS64")
            if counters is not None and (name := _name(link)) != "lo":
                found[name] = Traffic(
                    sent_bytes=counters["rx_bytes"],
                    sent_packets=counters["rx_packets"],
                    received_bytes=counters["tx_bytes"],
                    received_packets=counters["tx_packets"],
                    received_dropped=counters["tx_dropped"],
                )
        return found

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    return None if info is None else info.get_attr("IFLA_INFO_KIND")


def _name(link: Any) -> str:
    return str(link.get_attr("IFLA_IFNAME"))


def _cause(error: Exception) -> str:
    return str(error.args[-1]) if error.args else str(error)
