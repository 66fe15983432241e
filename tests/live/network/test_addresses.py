"""IPv6 through the uplink with its firewall, and a qube whose address is hidden from itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders import wait_for
from tests.live.network.conftest import Net
from tests.live.network.outside import HOST, HOST6, OTHER, OTHER6, SERVER, SERVER6
from tests.live.network.test_changes import never, reaches

pytestmark = pytest.mark.live

FAKE, FAKE_GATEWAY = "192.168.77.2", "192.168.77.1"
HELLO = "import socket; c = socket.create_connection(({!r}, 80), 10); print(c.recv(100).decode())"


def hello(net: Net, qube: str, server: str) -> str:
    """What a server says to a qube: the address that it sees."""
    return net.inside(qube, f'python3 -c "{HELLO.format(server)}"')


@pytest.fixture
def shut(net: Net) -> Iterator[str]:
    """A qube that reaches nothing, before and after the test."""
    yield "shut"
    net.set_rules("shut")


def test_rules_about_ipv6_hold_on_the_host_and_in_the_net_qube(net: Net, shut: str) -> None:
    net.set_rules(shut, f"action=accept proto=tcp dst6={SERVER6} dstports=80")
    web = ("tcp", SERVER6, 80)
    reaches(net, shut, web)
    # The server sees this host, as it would see a program of it.
    assert hello(net, shut, SERVER6) == f"hello {HOST6}"
    refused = [("tcp", SERVER6, 443), ("tcp", OTHER6, 80), ("udp", SERVER6, 7), ("tcp", SERVER, 80), ("tcp", HOST6, 80)]
    assert net.reach(shut, *refused) == [False] * len(refused)

    # In the net qube: its own rules refuse what the host would let through.
    address = net.run("qvm-prefs", shut, "ip6").stdout.decode().strip()
    chain = "qbs-" + address.replace(":", "-")
    rules = net.inside("sys-fw", f"nft list chain ip6 qubes {chain}", user="root")
    assert f"ip6 daddr {SERVER6} tcp dport 80" in rules

    # On the host: they hold when the net qube lets everything pass.
    net.inside("sys-fw", f"nft insert rule ip6 qubes {chain} accept", user="root")
    assert net.reach(shut, *refused) == [False] * len(refused)

    # The host's own address is barred by itself, whatever the rules say.
    net.set_rules(shut, "action=accept")
    reaches(net, shut, ("tcp", OTHER6, 80), ("udp", SERVER6, 7), ("icmp", SERVER6, 0))
    assert net.reach(shut, ("tcp", HOST6, 80), ("udp", HOST6, 7)) == [False, False]
    net.set_rules(shut)
    never(net, shut, web)


def test_names_let_their_ipv6_addresses_through(net: Net, shut: str) -> None:
    net.outside.zone({"six.example.org": [SERVER6], "other.example.org": [OTHER6]})
    net.set_rules(shut, "action=accept proto=tcp dsthost=six.example.org", "action=accept specialtarget=dns")
    wait_for(lambda: net.inside(shut, "getent ahostsv6 six.example.org || true").startswith(SERVER6), 60)
    assert net.inside(shut, "getent ahostsv6 other.example.org").startswith(OTHER6)
    reaches(net, shut, ("tcp", SERVER6, 80))
    assert net.reach(shut, ("tcp", OTHER6, 80)) == [False]


def test_a_hidden_address_is_all_that_a_qube_sees(net: Net, shut: str) -> None:
    true = net.ip(shut)
    net.set_rules(shut, f"action=accept dst4={SERVER}")
    net.run("qvm-features", shut, "net.fake-ip", FAKE)
    net.run("qvm-features", shut, "net.fake-gateway", FAKE_GATEWAY)
    try:
        wait_for(lambda: FAKE in net.inside(shut, "ip -4 -o addr show dev eth0"), 60)
        seen = net.inside(shut, "ip -4 addr; ip -4 route; ip neigh; qubesdb-multiread / | tr -d '\\0'")
        assert FAKE in seen and FAKE_GATEWAY in seen and true not in seen

        # Answers come back, of every protocol. The net qube forwards only what comes from the true address.
        reaches(net, shut, ("tcp", SERVER, 80), ("udp", SERVER, 7), ("icmp", SERVER, 0))
        assert hello(net, shut, SERVER) == f"hello {HOST}"
        assert true in net.inside("sys-fw", "nft list set ip qubes downstream", user="root")
        assert FAKE not in net.inside("sys-fw", "nft list ruleset; ip route", user="root")

        # The firewall is the same.
        assert net.reach(shut, ("tcp", OTHER, 80), ("tcp", HOST, 80)) == [False, False]
        net.set_rules(shut)
        never(net, shut, ("tcp", SERVER, 80))
    finally:
        net.run("qvm-features", "--unset", shut, "net.fake-ip")
        net.run("qvm-features", "--unset", shut, "net.fake-gateway")
    wait_for(lambda: true in net.inside(shut, "ip -4 -o addr show dev eth0"), 60)
    net.set_rules(shut, f"action=accept dst4={SERVER}")
    reaches(net, shut, ("tcp", SERVER, 80))
