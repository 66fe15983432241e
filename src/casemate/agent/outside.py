"""The interface of a net qube towards a network outside, by a card of the host: ``outside MAC WHAT``.

WHAT is ``dhcp``, or what the user gave: address/length, router or ``-``, name servers. A program of its own, started by
the agent: it reads what anybody on that network sends, and the agent starts it again when it fails. The agent has found
the interface, named and raised it before (``interface.py``).

::

    nothing ── DISCOVER ──▶ OFFER ── REQUEST ──▶ ACK: the address is ours ──┐
       ▲                                                                    │ half of its time is over
       └── NAK, or its time is over: the address is taken back ◀── REQUEST ─┘  (to all: any server may prolong it)
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
import time

from casemate.agent.interface import write_servers
from casemate.agent.netlink import Netlink, interfaces
from casemate.streams.ready import readable
from casemate.wire import dhcp
from casemate.wire.errors import ProtocolError

_IPV4 = 0x0800  # ETH_P_IP
_EVERYBODY = b"\xff" * 6
_FIRST_SECONDS, _LAST_SECONDS = 1.0, 32.0
"""Between two questions that nobody answers: at first, and at last. Doubled each time (RFC 2131, 4.1)."""
_OFFER_SECONDS = 4.0
"""How long a server that made an offer may take to keep it."""
_GET_ADDRESS, _SET_ADDRESS = 0x8915, 0x8916  # SIOCGIFADDR, SIOCSIFADDR: netdevice(7); 0.0.0.0 takes it away
_MOST_ADDRESSES = 16
_LEAST_WAIT = 30.0
"""Seconds between two attempts to prolong an address."""


class Address:
    """What the interface has now; another address replaces it."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._netlink = Netlink()
        self._has: tuple[str, int, str | None] | None = None

    def be(self, address: str, length: int, router: str | None, servers: list[str]) -> None:
        """Have an address, the way to everybody, and name servers."""
        wanted = (address, length, router)
        if self._has is not None and self._has != wanted:
            self.forget()
        self._netlink.address(self._index, address, length=length)
        if router is not None:
            self._netlink.route(self._index, None, via=router, source=address)
        self._has = wanted
        write_servers(servers)

    def clear(self, interface: str) -> None:
        """Take back what an earlier run of this program gave to the interface."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            try:
                for _address in range(_MOST_ADDRESSES):
                    fcntl.ioctl(any_socket, _GET_ADDRESS, struct.pack("16s24x", interface.encode()))
                    fcntl.ioctl(any_socket, _SET_ADDRESS, struct.pack("16sH22x", interface.encode(), socket.AF_INET))
            except OSError:
                pass  # EADDRNOTAVAIL: there is none any more

    def forget(self) -> None:
        """Have none; routes go with it."""
        if self._has is not None:
            address, length, _router = self._has
            self._netlink.address(self._index, address, add=False, length=length)
            self._has = None


class Client:
    """Asks for an address, and keeps it, on one interface."""

    def __init__(self, interface: str, mac: str, address: Address) -> None:
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._to = (interface, _IPV4, 0, 0, _EVERYBODY)
        self._address = address
        # Below the kernel's own stack: it has no address to receive with yet.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(_IPV4))
        self._socket.bind((interface, _IPV4))

    def run(self) -> None:
        """Keep an address for ever; OSError when the interface goes."""
        while True:
            self._keep(self._obtain())
            self._address.forget()

    def _obtain(self) -> dhcp.Answer:
        """An address that a server gave us, however long that takes."""
        wait = _FIRST_SECONDS
        while True:
            offer = self._ask(dhcp.DISCOVER, wait, dhcp.OFFER)
            if offer is not None:
                told = self._ask(dhcp.REQUEST, _OFFER_SECONDS, dhcp.ACK, asked=offer.address, server=offer.server)
                if told is not None and told.kind == dhcp.ACK:
                    return told
            wait = min(2 * wait, _LAST_SECONDS)

    def _keep(self, lease: dhcp.Answer) -> None:
        """Use an address until its time is over, or a server takes it back."""
        while True:
            end = time.monotonic() + lease.seconds
            self._address.be(lease.address, lease.length, lease.router, lease.servers)
            print(f"outside: {lease.address}/{lease.length} for {lease.seconds} s", file=sys.stderr)
            time.sleep(lease.seconds / 2)
            while True:
                wait = max((end - time.monotonic()) / 2, _LEAST_WAIT)
                told = self._ask(dhcp.REQUEST, wait, dhcp.ACK, own=lease.address)
                if told is not None or time.monotonic() >= end:
                    break
            if told is None or told.kind == dhcp.NAK:
                return
            lease = told

    def _ask(
        self, kind: int, seconds: float, wanted: int, asked: str = "", server: str = "", own: str = ""
    ) -> dhcp.Answer | None:
        """The answer to one question, or a NAK; None when none comes in time. What is broken or somebody else's is
        passed over: the true answer may still come."""
        xid = int.from_bytes(os.urandom(4), "big")
        body = dhcp.question(kind, xid, self._mac, asked, server, own)
        self._socket.sendto(dhcp.datagram(body, own or "0.0.0.0"), self._to)  # noqa: S104
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not readable([self._socket.fileno()], left):
                break
            try:
                answer = dhcp.parse(dhcp.body_of(self._socket.recv(65536)), xid, self._mac)
                if answer.kind == dhcp.NAK and kind == dhcp.REQUEST:
                    return answer
                # All that will be used, so that a half answer is none.
                usable = (answer.server, answer.length, answer.router, answer.servers, answer.seconds)
            except ProtocolError:
                continue
            if answer.kind == wanted and usable and (not own or answer.address == own):
                return answer
        return None


def main(argv: list[str]) -> int:
    """Run for ever; ends with an error when the interface goes, and is started again."""
    mac, what = argv[1], argv[2]
    found = interfaces().get(mac)
    if found is None:
        return 1  # the agent tells when it comes
    name, index = found
    address = Address(index)
    try:
        address.clear(name)
        if what == "dhcp":
            Client(name, mac, address).run()
        given, router, *servers = what.split()
        own, _, length = given.partition("/")
        address.be(own, int(length), None if router == "-" else router, servers)
        signal.pause()  # the agent ends this when the interface is another
    except (OSError, ValueError) as error:
        sys.stderr.write(f"outside: {error}\n")
    return 1
