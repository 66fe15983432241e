"""The interface towards the qube's network: address, route, neighbour and name servers, as the database says.

Everything is given, nothing is asked for: no DHCP, no ARP, no router advertisements. The agent runs this at its start,
when a key changes, and when an interface comes (a qube can be given a network while it runs).
"""

from __future__ import annotations

import sys

from casemate.agent.netlink import Netlink, interfaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "eth0"
SERVED = "vif0"
"""The interface of a net qube towards the qubes that it serves."""
GATEWAY_MAC = "fe:ff:ff:ff:ff:ff"
KEYS = (
    "/qubes-mac", "/qubes-ip", "/qubes-gateway", "/qubes-ip6", "/qubes-gateway6",
    "/qubes-primary-dns", "/qubes-secondary-dns", "/qubes-uplink",
)  # fmt: skip
"""What the interface is made of. ``/qubes-uplink`` is there in a net qube with a card of the host, in place of all
addresses (see ``outside.py``)."""
RESOLVER = "/etc/resolv.conf"


def write_setting(path: str, value: str) -> None:
    """Write a setting of the kernel; one that it does not have is fine."""
    try:
        with open(f"/proc/sys/net/{path}", "w", encoding="ascii") as file:
            file.write(value)
    except OSError:
        pass


def no_own_addresses(name: str, ip6: bool) -> None:
    """Let an interface take no address by itself, none that is local to the wire, and none that somebody advertises."""
    write_setting(f"ipv6/conf/{name}/accept_ra", "0")
    write_setting(f"ipv6/conf/{name}/addr_gen_mode", "1")
    write_setting(f"ipv6/conf/{name}/disable_ipv6", "0" if ip6 else "1")


class Interface:
    """What the interface was last made to be; ``bring`` makes it what the database says now."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        """``read`` gives the value of a key."""
        self._read = read
        self._done: tuple[str, ...] = ()
        self._index = -1
        self.outside: tuple[str, str, int] | None = None
        """MAC address, ``/qubes-uplink`` and index of an interface that another program is to give its address."""

    def wanted(self) -> tuple[str, ...]:
        """The values of KEYS, empty for those that are missing."""
        return tuple((self._read(key) or b"").decode("ascii", "replace") for key in KEYS)

    def bring(self) -> bool:
        """Make it so; True when there is an interface that is set up."""
        wanted = self.wanted()
        mac, ip = wanted[0], wanted[1]
        before, self.outside = self.outside, None
        if mac and wanted[-1]:
            return self._bring_outside(mac, wanted[-1], before)
        if not mac or not ip:
            self._take_down()
            return False
        found = interfaces().get(mac)
        if found is None:
            self._done, self._index = (), -1
            return False
        name, index = found
        if (wanted, index) == (self._done, self._index):
            return True
        try:
            self._set_up(Netlink(), name, index, wanted)
        except OSError as error:
            sys.stderr.write(f"casemate-agent: network: {error}\n")
            return False
        self._done, self._index = wanted, index
        return True

    def _bring_outside(self, mac: str, what: str, before: tuple[str, str, int] | None) -> bool:
        """Find, name and raise the interface towards a network outside."""
        found = interfaces().get(mac)
        if found is None:
            return False
        name, index = found
        if before == (mac, what, index):
            self.outside = before
            return True
        try:
            netlink = Netlink()
            self._take_name(netlink, name, index)
            no_own_addresses(NAME, False)
            netlink.set_up(index)
        except OSError as error:
            sys.stderr.write(f"casemate-agent: network: {error}\n")
            return False
        self.outside = (mac, what, index)
        return True

    def _take_name(self, netlink: Netlink, name: str, index: int) -> None:
        if name != NAME:
            self._make_way(netlink)
            netlink.rename(index, NAME)

    def _set_up(self, netlink: Netlink, name: str, index: int, wanted: tuple[str, ...]) -> None:
        _mac, ip, gateway, ip6, gateway6, *servers, _outside = wanted
        if index == self._index and self._done:
            self._forget(netlink, index)
        self._take_name(netlink, name, index)
        no_own_addresses(NAME, bool(ip6))
        netlink.set_up(index)
        for address, router in ((ip, gateway), (ip6, gateway6)):
            if not address:
                continue
            netlink.address(index, address)
            if router:
                netlink.neighbour(index, router, GATEWAY_MAC)
                netlink.route(index, router)
                netlink.route(index, None, via=router, source=address)
        write_servers([server for server in servers if server])

    @staticmethod
    def _make_way(netlink: Netlink) -> None:
        """The kernel numbers interfaces as it finds them: that towards served qubes may have our name."""
        for found, index in interfaces().values():
            if found == NAME:
                netlink.rename(index, SERVED)

    def _forget(self, netlink: Netlink, index: int) -> None:
        """Take back what was set before; routes go with the addresses."""
        _mac, ip, gateway, ip6, gateway6, *_servers = self._done
        for address, router in ((ip, gateway), (ip6, gateway6)):
            if router:
                netlink.route(index, router, add=False)
                netlink.neighbour(index, router, GATEWAY_MAC, add=False)
            if address:
                netlink.address(index, address, add=False)

    def _take_down(self) -> None:
        if self._done:
            try:
                netlink = Netlink()
                self._forget(netlink, self._index)
                netlink.set_up(self._index, False)
            except OSError:
                pass  # the interface has gone
            self._done, self._index = (), -1


def write_servers(servers: list[str]) -> None:
    """Have these name servers, for all programs."""
    text = "".join(f"nameserver {server}\n" for server in servers)
    try:
        with open(RESOLVER, encoding="ascii", errors="replace") as file:
            if file.read() == text:
                return
    except OSError:
        pass
    try:
        # Not a rename: the file may be a link, or a mount of its own.
        with open(RESOLVER, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        sys.stderr.write(f"casemate-agent: {RESOLVER}: {error.strerror}\n")
