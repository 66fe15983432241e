"""Who reaches whom: as declared and nothing else, cell by cell, on real machines."""

from __future__ import annotations

import pytest

from tests.live.network.conftest import DECLARED, PORT, Net
from tests.live.network.outside import HOST, HOST6, OTHER, SERVER, SERVER6

pytestmark = pytest.mark.live

PROTOCOLS = ("tcp", "udp", "icmp")


def _places(net: Net) -> dict[tuple[str, str], tuple[str, str, int]]:
    """Every place that is tried, by (what, protocol)."""
    found: dict[tuple[str, str], tuple[str, str, int]] = {}
    for protocol, port in zip(PROTOCOLS, (80, 7, 0), strict=True):
        found["server", protocol] = (protocol, SERVER, port)
        found["other server", protocol] = (protocol, OTHER, port)
        found["host", protocol] = (protocol, HOST, port)
        for name in DECLARED:
            found[name, protocol] = (protocol, net.ip(name), PORT)
        found["server by IPv6", protocol] = (protocol, SERVER6, port)
        found["host by IPv6", protocol] = (protocol, HOST6, port)
    found["server port 443", "tcp"] = ("tcp", SERVER, 443)
    found["host port 22", "tcp"] = ("tcp", HOST, 22)
    for name in ("open", "sys-fw"):
        address = net.run("qvm-prefs", name, "ip6").stdout.decode().strip()
        for protocol in PROTOCOLS:
            found[f"{name} by IPv6", protocol] = (protocol, address, PORT)
    for protocol in PROTOCOLS:
        found["everybody by IPv6", protocol] = (protocol, "ff02::1%eth0", PORT)
    return found


def _declared(qube: str, what: str, protocol: str) -> bool:
    """Whether the declaration lets a qube reach a place."""
    me = DECLARED[qube]
    chain = me.uplink or me.netvm is not None
    if what in ("server", "other server", "server port 443"):
        if me.rules is None:
            return chain
        return qube == "web" and (what, protocol) == ("server", "tcp")
    if what == "server by IPv6":
        # The rules of others name IPv4 addresses, which says nothing of IPv6.
        return chain and me.rules is None
    # A net qube answers pings of the qubes that it serves, if their rules let them ask.
    return protocol == "icmp" and me.rules is None and what in (me.netvm, f"{me.netvm} by IPv6" if me.ipv6 else None)


def test_every_cell_is_as_declared(net: Net) -> None:
    places = _places(net)
    wrong = {}
    for qube in DECLARED:
        # What is a qube's own is no wire's business.
        mine = (qube, f"{qube} by IPv6")
        tried = {key: place for key, place in places.items() if key[0] not in mine}
        for (what, protocol), seen in zip(tried, net.reach(qube, *tried.values()), strict=True):
            if seen is not _declared(qube, what, protocol):
                wrong[qube, what, protocol] = seen
    assert wrong == {}
    assert len(places) * len(DECLARED) > 190
