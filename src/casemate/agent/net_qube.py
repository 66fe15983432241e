"""What a net qube runs for the qubes that it serves: forwarding, their firewalls, their name service.

A program of its own, started by the agent: when it fails, the agent starts it again, and the rules that the kernel has
stay meanwhile. Nothing is forwarded before the first rules are loaded. It follows the database of the qube:
``/connected-ips`` has the qubes that are served, ``/qubes-firewall/ADDRESS/`` the rules of each, which are whole when
``/qubes-firewall/ADDRESS`` is written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from casemate.agent.interface import GATEWAY_MAC, RESOLVER, SERVED, no_own_addresses, write_setting
from casemate.agent.libnftables import Nft, NftError
from casemate.agent.name_service import NameService
from casemate.agent.net_rules import NAME_PORT, base, client, connected, forget, learned, name_set
from casemate.agent.netlink import Netlink, interfaces, packed
from casemate.qdb.client import QubesDB
from casemate.streams.loop import READ, Loop
from casemate.wire import dns
from casemate.wire.errors import CasemateError
from casemate.wire.firewall import parse_rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.wire.firewall import Rule

DATABASE = "/run/qubes/qubesdb.sock"
FIREWALL = "/qubes-firewall/"
CLIENT_MAC = "00:16:3e:5e:6c:00"
"""Where packets to served qubes are sent. The host's guard puts in the address of the one that the packet is for."""
USER_SCRIPT = "/rw/config/qubes-firewall-user-script"
LEAST_SECONDS, MOST_SECONDS = 60, 86400
"""Bounds of how long an address of a name is let through. Programs keep addresses a little longer than they may."""
_SELF = "self "
"""Before the address of a qube that we ask for: such queries are counted apart from those that it sends itself."""
_KEYS = {4: "/connected-ips", 6: "/connected-ips6"}


def family_of(address: str) -> int | None:
    """4 or 6; None for text that is no address."""
    try:
        packed(address)
    except OSError:
        return None
    return 6 if ":" in address else 4


class NetQube:
    """Owns the nft tables ``qubes`` of this guest, and the routes to the qubes that are served."""

    def __init__(self, loop: Loop, database: QubesDB) -> None:
        self._loop = loop
        self._database = database
        self._nft = Nft()
        self._lock = threading.Lock()  # the name service learns by TCP in threads of its own
        self._served: dict[int, list[str]] = {4: [], 6: []}
        self._numbers: dict[str, int] = {}
        self._hosts: dict[str, list[str]] = {}
        self._mark = int(time.time()) & 0x3FFFFFFF
        self._routed: set[str] = set()
        self._looking: set[tuple[str, str]] = set()
        self.names: NameService | None = None

    # -- what the database says

    def begin(self) -> None:
        """Load everything, then forward."""
        for key in (*_KEYS.values(), FIREWALL):
            self._database.watch(key)
        with self._lock:
            for family in (4, 6):
                self._nft.load(base(family))
        self._follow_served()
        write_setting("ipv4/ip_forward", "1")

    def watch(self) -> None:
        """Follow all changes that the database tells of.

        A change that is told of while the rules of another are read waits in the client: the descriptor, which the
        loop watches, is not readable for it. So this looks again until nothing is left.
        """
        while changed := self._changed():
            if not changed.isdisjoint(_KEYS.values()):
                self._follow_served()
            for path in changed:
                address = path.removeprefix(FIREWALL)
                if any(address in addresses for addresses in self._served.values()):
                    self._load_rules(address)

    def _changed(self) -> set[str]:
        """The keys that the database has told of until now."""
        changed = set()
        while (path := self._database.read_watch(0)) is not None:
            changed.add(path)
        return changed

    def _follow_served(self) -> None:
        """Have rules for the qubes that are served now, then the way to them."""
        for family, key in _KEYS.items():
            wanted = [word for word in self._read(key).split() if family_of(word) == family]
            before = self._served[family]
            with self._lock:
                commands = connected(family, wanted)
                for address in before:
                    if address not in wanted:
                        commands += forget(family, address)
                        self._hosts.pop(address, None)
                self._nft.load(commands)
            self._served[family] = wanted
            for address in wanted:
                if address not in before:
                    self._load_rules(address)
        self._bring_interface()
        if self._served[6]:
            write_setting("ipv6/conf/all/forwarding", "1")

    def _read(self, key: str) -> str:
        return (self._database.read(key) or b"").decode("ascii", "replace")

    def _rules(self, address: str) -> list[Rule] | None:
        """The rules of a qube; None when they are missing, or one is not understood: then nothing passes."""
        prefix = f"{FIREWALL}{address}/"
        found = self._database.multiread(prefix)
        if found.pop(f"{prefix}policy", b"") != b"drop":
            return None
        try:
            return [parse_rule(value.decode("ascii")) for _key, value in sorted(found.items())]
        except (CasemateError, ValueError) as error:
            sys.stderr.write(f"net-qube: rules of {address}: {error}: everything is dropped\n")
            return None

    def _load_rules(self, address: str) -> None:
        family = family_of(address)
        assert family is not None
        rules = self._rules(address)
        hosts = sorted({rule["dsthost"] for rule in rules or () if "dsthost" in rule})
        number = self._numbers.setdefault(address, len(self._numbers) + 1)
        with self._lock:
            self._mark += 1
            try:
                self._nft.load(client(family, address, number, self._mark, rules))
            except NftError as error:
                sys.stderr.write(f"net-qube: rules of {address} were refused, so everything is dropped: {error}\n")
                self._nft.load(client(family, address, number, self._mark, None))
            self._hosts[address] = hosts
        for host in hosts:
            if (address, host) not in self._looking:
                self._look_up(address, host)

    # -- names

    def learn(self, asker: str, name: str, addresses: Sequence[tuple[str, int]]) -> None:
        """A qube is about to be told these addresses of a name: let it reach them, if its rules have the name. The same
        for what we have asked in its place."""
        with self._lock:
            for mine in self._addresses_of(asker.removeprefix(_SELF)):
                for host in self._hosts.get(mine, ()):
                    if dns.matches(host, name):
                        self._let_through(mine, host, addresses)

    def _addresses_of(self, asker: str) -> list[str]:
        """All addresses of the qube that has this one: it asks by IPv4 for addresses of both families."""
        mine = [asker]
        if asker in self._served[4]:
            position = self._served[4].index(asker)
            mine += self._served[6][position : position + 1] if len(self._served[6]) == len(self._served[4]) else []
        return mine

    def _let_through(self, mine: str, host: str, addresses: Sequence[tuple[str, int]]) -> None:
        family = family_of(mine)
        assert family is not None
        found = [
            (address, min(max(ttl, LEAST_SECONDS), MOST_SECONDS))
            for address, ttl in dict(addresses).items()
            if family_of(address) == family
        ]
        if not found:
            return
        try:
            self._nft.load(learned(family, name_set(family, self._numbers[mine], host), found))
        except NftError as error:
            sys.stderr.write(f"net-qube: addresses of {host}: {error}\n")

    def _look_up(self, address: str, host: str) -> None:
        """Ask for a name ourselves, and again before its addresses expire: a program may know them without asking."""
        family = family_of(address)
        if host.startswith("*.") or self.names is None or host not in self._hosts.get(address, ()):
            self._looking.discard((address, host))
            return
        self._looking.add((address, host))
        data = dns.query(host, dns.A if family == 4 else dns.AAAA, 0)
        self.names.ask(_SELF + address, dns.parse_query(data), data, lambda _answer: None)
        self._loop.later(LEAST_SECONDS / 2, lambda: self._look_up(address, host))

    # -- interface and routes

    def _bring_interface(self) -> None:
        """The interface towards served qubes, with the gateway's address; one route and neighbour for each qube."""
        gateways = {4: self._read("/qubes-netvm-gateway"), 6: self._read("/qubes-netvm-gateway6")}
        found = interfaces().get(GATEWAY_MAC)
        if found is None:
            sys.stderr.write("net-qube: there is no interface towards served qubes\n")
            return
        name, index = found
        netlink = Netlink()
        if name != SERVED:
            netlink.rename(index, SERVED)
        no_own_addresses(SERVED, bool(gateways[6]))
        write_setting(f"ipv4/conf/{SERVED}/send_redirects", "0")
        netlink.set_up(index)
        wanted = set()
        for family, gateway in gateways.items():
            if not gateway:
                continue
            netlink.address(index, gateway)
            for address in self._served[family]:
                netlink.neighbour(index, address, CLIENT_MAC)
                netlink.route(index, address, source=gateway)
                wanted.add(address)
        for address in self._routed - wanted:
            netlink.route(index, address, add=False)
            netlink.neighbour(index, address, CLIENT_MAC, add=False)
        self._routed = wanted


def _servers() -> list[str]:
    try:
        with open(RESOLVER, encoding="ascii", errors="replace") as file:
            return dns.servers(file.read())
    except OSError:
        return []


def main(argv: list[str]) -> int:
    """Serve for ever; ends with an error when the database goes, and is started again."""
    loop = Loop()
    with QubesDB(DATABASE) as database:
        qube = NetQube(loop, database)
        qube.names = NameService(loop, NAME_PORT, _servers, qube.learn)
        qube.begin()
        if os.access(USER_SCRIPT, os.X_OK):
            subprocess.run([USER_SCRIPT], check=False)  # fills custom-input and custom-forward
        os.close(1)  # the agent waits for this
        loop.watch(database.watch_fd(), READ, lambda _mask: qube.watch())
        qube.watch()
        loop.run()
    return 0
