"""What passes a wire and what does not: real taps and real nft rules, the guests' frames sent by hand.

One file although it is long: all of it speaks of the same four qubes and shares one process with their taps.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import casemate
from casemate.network.parts import MAX_UDP
from casemate.network.plan import SERVED_MAC
from tests.component import frames as f

REPO = Path(casemate.__file__).parents[2]
MAC, OTHER_MAC = "00:16:3e:5e:6c:00", "00:16:3e:5e:6c:99"
WORK, MAIL, HIDDEN, NET = "10.137.0.12", "10.137.0.13", "10.137.0.14", "10.137.0.3"
FAKE = "192.168.1.2"
WORK6, NET6 = "fd09:24ef:4179::a89:c", "fd09:24ef:4179::a89:3"
OUTSIDE, HOST = "198.51.100.7", "192.0.2.2"
OUTSIDE6, HOST6 = "2001:db8:2::7", "2001:db8:1::2"
ACCEPT = {"action": "accept"}


def wire(qid: int, ip: str, peer: str | None, *rules: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "name": f"q{qid}", "qid": qid, "mac": MAC, "ip": ip, "seen_ip": ip, "ip6": None, "peer": peer, "uplink": False,
        "inbound": False, "rules": list(rules or [ACCEPT]), **more,
    }  # fmt: skip


def served() -> dict[str, Any]:
    return {"name": "net", "qid": 3, "ip": NET, "ip6": NET6}


def uplink() -> dict[str, Any]:
    return wire(3, NET, "x3", uplink=True)


class Lab:
    """The lab's process."""

    def __init__(self) -> None:
        # Root needs only a network; a user makes both namespaces and keeps the right to set up the network.
        how = ["--net"] if os.geteuid() == 0 else ["--user", "--map-current-user", "--net", "--keep-caps"]
        self.process = subprocess.Popen(
            ["unshare", *how, sys.executable, "-m", "tests.component.wire_lab"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO,
        )  # fmt: skip
        self.seconds = 0.0
        """What the lab needed for its last answer."""

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline() or '{"answer": {"error": "the lab ended"}, "seconds": 0}')
        self.seconds = told["seconds"]
        answer = told["answer"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def plan(self, *wires: dict[str, Any], serves: bool = True, hosts: tuple[str, ...] = (HOST,)) -> None:
        net = [served()] if serves else []
        self.ask(plan={"wires": list(wires), "served": net, "hosts": list(hosts), "hosts6": [HOST6]})

    def begin(self) -> None:
        """Two qubes behind a net qube with an uplink; all counters at none."""
        self.ask(anew=1)
        self.plan(wire(12, WORK, "d3", ip6=WORK6), wire(13, MAIL, "d3"), uplink())

    def send(self, tap: str, *frames: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = self.ask(send=tap, frames=list(frames))
        return found

    def passes(self, tap: str, *frames: str) -> set[str]:
        """The taps that the frames came out of, answers of the guard itself (refusals) left out."""
        return {out for out in self.send(tap, *frames) if out != tap}

    def counted(self) -> dict[str, int]:
        found: dict[str, int] = self.ask(counters=1)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture(scope="module")
def process() -> Iterator[Lab]:
    """The one process of these tests."""
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def lab(process: Lab) -> Lab:
    """The lab as each test finds it."""
    process.begin()
    return process


def from_work(body: bytes, kind: int = 0x0800, source: str = MAC, target: str = SERVED_MAC) -> str:
    return f.ethernet(source, target, kind, body)


def from_net(body: bytes, kind: int = 0x0800, source: str = SERVED_MAC, target: str = MAC) -> str:
    return f.ethernet(source, target, kind, body)


ROUTE_OPTION = b"\x83\x07\x04" + socket.inet_aton(NET) + b"\0"
FRAGMENT6 = b"\x06\0\0\x01\0\0\0\1"

HOSTILE = {
    "another MAC": ("mac", from_work(f.udp(WORK, OUTSIDE, 1000, 53), source=OTHER_MAC)),
    "the net qube's MAC": ("mac", from_work(f.udp(WORK, OUTSIDE, 1000, 53), source=SERVED_MAC)),
    "a neighbour's address": ("spoof", from_work(f.udp(MAIL, OUTSIDE, 1000, 53))),
    "the gateway's address": ("spoof", from_work(f.udp(NET, OUTSIDE, 1000, 53))),
    "no address": ("spoof", from_work(f.udp("0.0.0.0", OUTSIDE, 1000, 53))),
    "a VLAN": ("type", from_work(b"\0\5\x08\0" + f.udp(WORK, OUTSIDE, 1000, 53), 0x8100)),
    "a VLAN in a VLAN": ("type", from_work(b"\0\5\x81\0\0\6\x08\0" + f.udp(WORK, OUTSIDE, 1000, 53), 0x88A8)),
    "spanning tree": ("type", from_work(b"\x42\x42\x03" + b"\0" * 35, 38, target="01:80:c2:00:00:00")),
    "LLDP": ("type", from_work(b"\0" * 46, 0x88CC, target="01:80:c2:00:00:0e")),
    "PPPoE": ("type", from_work(b"\0" * 46, 0x8863)),
    "ARP of a neighbour's address": ("arp", from_work(f.arp(2, MAC, MAIL, SERVED_MAC, NET), 0x0806)),
    "ARP of the gateway's address": (
        "arp",
        from_work(f.arp(2, MAC, NET, f.BROADCAST, NET), 0x0806, target=f.BROADCAST),
    ),
    "ARP with another inner MAC": ("arp", from_work(f.arp(2, OTHER_MAC, WORK, SERVED_MAC, NET), 0x0806)),
    "ARP of another kind": ("arp", from_work(f.arp(3, MAC, WORK, SERVED_MAC, NET), 0x0806)),
    "a DHCP server": ("nowhere", from_work(f.udp(WORK, OUTSIDE, 67, 68))),
    "to everybody": ("nowhere", from_work(f.udp(WORK, "255.255.255.255", 1000, 68), target=f.BROADCAST)),
    "multicast": ("nowhere", from_work(f.udp(WORK, "224.0.0.251", 5353, 5353), target="01:00:5e:00:00:fb")),
    "to a loopback": ("nowhere", from_work(f.tcp(WORK, "127.0.0.1", 1000, 22))),
    "to a local link": ("nowhere", from_work(f.tcp(WORK, "169.254.169.254", 1000, 80))),
    "a source route": ("nowhere", from_work(f.ip4(WORK, OUTSIDE, 6, b"\0" * 20, ROUTE_OPTION))),
    "a piece of TCP": ("nowhere", from_work(f.ip4(WORK, OUTSIDE, 6, b"\0" * 8, fragment=0x2000))),
    "IPv6 of a neighbour": ("spoof", from_work(f.icmp6("fd09:24ef:4179::a89:d", NET6, 128), 0x86DD)),
    "IPv6 of the local link": ("spoof", from_work(f.icmp6("fe80::1", "ff02::1", 128), 0x86DD)),
    "a router's advertisement": ("nowhere", from_work(f.icmp6(WORK6, NET6, 134), 0x86DD)),
    "a router's advertisement to all": ("nowhere", from_work(f.icmp6(WORK6, "ff02::1", 134), 0x86DD)),
    "a neighbour's advertisement": ("nowhere", from_work(f.icmp6(WORK6, NET6, 136), 0x86DD)),
    "a redirect of IPv6": ("nowhere", from_work(f.icmp6(WORK6, NET6, 137), 0x86DD)),
    "a piece of IPv6": ("nowhere", from_work(f.ip6(WORK6, NET6, 44, FRAGMENT6 + b"\0" * 20), 0x86DD)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_frame_is_dropped_and_counted(lab: Lab, what: str) -> None:
    cause, frame = HOSTILE[what]
    assert lab.passes("u12", frame) == set()
    counted = lab.counted()
    assert counted.get(f"u12-{cause}") == 1, counted
    # The wire still works, so that it was that frame.
    assert lab.passes("u12", from_work(f.udp(WORK, OUTSIDE, 1000, 53))) == {"d3"}


def test_ipv6_of_a_qube_without_it_is_dropped(lab: Lab) -> None:
    assert lab.passes("u13", from_work(f.icmp6("fd09:24ef:4179::a89:d", NET6, 128), 0x86DD)) == set()
    assert lab.counted().get("u13-type") == 1


@pytest.mark.parametrize("frame", [b"", b"\xff" * 13, b"\0" * 14, b"\xff" * 60, b"\0" * 1500])
def test_frames_that_are_none_are_dropped(lab: Lab, frame: bytes) -> None:
    try:
        assert lab.passes("u12", frame.hex()) == set()
    except AssertionError as error:
        assert "Invalid argument" in str(error)  # too short for the tap itself


def test_own_traffic_passes_with_the_right_addresses(lab: Lab) -> None:
    out = lab.send("u12", from_work(f.udp(WORK, OUTSIDE, 1000, 53), target="02:00:00:00:00:01"))
    assert out == {"d3": [from_work(f.udp(WORK, OUTSIDE, 1000, 53))]}  # to the net qube, whatever it was sent to
    # (the answer to that)
    out = lab.send("d3", from_net(f.udp(OUTSIDE, WORK, 53, 1000), target="02:00:00:00:00:01"))
    assert out == {"u12": [from_net(f.udp(OUTSIDE, WORK, 53, 1000))]}
    assert lab.passes("u12", from_work(f.arp(1, MAC, WORK, "00:00:00:00:00:00", NET), 0x0806)) == {"d3"}
    assert lab.passes("u12", from_work(f.icmp6(WORK6, NET6, 128), 0x86DD)) == {"d3"}


def test_arp_is_slow(lab: Lab) -> None:
    request = from_work(f.arp(1, MAC, WORK, "00:00:00:00:00:00", NET), 0x0806)
    assert 1 <= len(lab.send("u12", *[request] * 200)["d3"]) <= 40
    assert lab.counted()["u12-arp"] >= 160


FROM_NET = {
    "a sibling's address": ("spoof", from_net(f.udp(MAIL, WORK, 53, 1000))),
    "an address of a qube that is off": ("spoof", from_net(f.udp("10.138.4.4", WORK, 53, 1000))),
    "another MAC": ("mac", from_net(f.udp(OUTSIDE, WORK, 53, 1000), source=OTHER_MAC)),
    "to a qube that it does not serve": ("type", from_net(f.udp(OUTSIDE, "10.137.0.99", 53, 1000))),
    "a VLAN": ("type", from_net(b"\0\5\x08\0" + f.udp(OUTSIDE, WORK, 53, 1000), 0x8100)),
    "ARP of a sibling's address": ("arp", from_net(f.arp(2, SERVED_MAC, MAIL, MAC, WORK), 0x0806)),
    "a router's advertisement": ("nowhere", from_net(f.icmp6(NET6, WORK6, 134), 0x86DD)),
    "IPv6 of a sibling": ("spoof", from_net(f.icmp6("fd09:24ef:4179::a89:d", WORK6, 129), 0x86DD)),
}


@pytest.mark.parametrize("what", FROM_NET)
def test_a_net_qube_cannot_pretend(lab: Lab, what: str) -> None:
    cause, frame = FROM_NET[what]
    assert lab.passes("d3", frame) == set()
    assert lab.counted().get(f"d3-{cause}") == 1, lab.counted()


@pytest.mark.parametrize(
    "body",
    [
        f.tcp(OUTSIDE, WORK, 1000, 22),
        f.icmp(OUTSIDE, WORK),
        f.icmp(OUTSIDE, WORK, 5),
        f.ip4(OUTSIDE, WORK, 6, b"\0" * 8, fragment=0x2000),
        f.udp(OUTSIDE, WORK, 53, 1000),
        f.ip4(OUTSIDE, WORK, 47, b"\0" * 20),
    ],
    ids=["TCP", "ping", "redirect", "piece", "UDP", "GRE"],
)
def test_nobody_opens_a_connection_to_a_qube(lab: Lab, body: bytes) -> None:
    assert lab.passes("d3", from_net(body)) == set()
    counted = lab.counted()
    assert counted.get("u12-inbound", 0) + counted.get("u12-nowhere", 0) == 1
    assert lab.passes("d3", from_net(f.tcp(OUTSIDE, WORK, 80, 1000, flags=0x12))) == {"u12"}  # an answer


def test_only_answers_to_datagrams_come_back(lab: Lab) -> None:
    lab.send("u12", from_work(f.udp(WORK, OUTSIDE, 1000, 53)))
    assert lab.passes("d3", from_net(f.udp(OUTSIDE, WORK, 53, 1000))) == {"u12"}
    for source, port, to in (("198.51.100.8", 53, 1000), (OUTSIDE, 54, 1000), (OUTSIDE, 53, 1001)):
        assert lab.passes("d3", from_net(f.udp(source, WORK, port, to))) == set()
    assert lab.passes("d3", from_net(f.udp(OUTSIDE, MAIL, 53, 1000))) == set()  # another qube's answer


def in_pieces(source: str, target: str, from_port: int, port: int) -> tuple[bytes, bytes]:
    """A datagram that is too large for one packet, as the two that carry it."""
    whole = f.udp(source, target, from_port, port, b"x" * 1600)[20:]
    return (
        f.ip4(source, target, 17, whole[:800], fragment=0x2000),
        f.ip4(source, target, 17, whole[800:], fragment=100),
    )


def test_large_datagrams_pass_in_pieces(lab: Lab) -> None:
    first, second = in_pieces(WORK, OUTSIDE, 1000, 53)
    assert len(lab.send("u12", from_work(first), from_work(second))["d3"]) == 2
    first, second = in_pieces(OUTSIDE, WORK, 53, 1000)
    assert len(lab.send("d3", from_net(first), from_net(second))["u12"]) == 2
    # A first piece is judged as a whole datagram is.
    other, _second = in_pieces(OUTSIDE, MAIL, 53, 1000)
    assert lab.passes("d3", from_net(other)) == set()


def test_a_flood_of_datagrams_ends_at_the_limit_and_hurts_nobody_else(lab: Lab) -> None:
    for start in range(0, MAX_UDP + 600, 200):
        lab.send(
            "u12", *(from_work(f.udp(WORK, OUTSIDE, n % 60000 + 1, n // 60000 + 1)) for n in range(start, start + 200))
        )
    assert lab.counted()["u12-full"] > 300
    assert lab.passes("u12", from_work(f.tcp(WORK, OUTSIDE, 1, 80))) == {"d3"}
    assert lab.passes("u13", from_work(f.udp(MAIL, OUTSIDE, 1000, 53))) == {"d3"}


def test_a_qube_that_is_open_to_its_net_qube_gets_connections(lab: Lab) -> None:
    lab.plan(wire(12, WORK, "d3", inbound=True), wire(13, MAIL, "d3"), uplink())
    assert lab.passes("d3", from_net(f.tcp(OUTSIDE, WORK, 1000, 22))) == {"u12"}
    assert lab.passes("d3", from_net(f.tcp(OUTSIDE, MAIL, 1000, 22))) == set()


def test_the_uplink_reaches_outside_and_not_this_host(lab: Lab) -> None:
    assert lab.passes("u3", from_work(f.tcp(NET, OUTSIDE, 1000, 80))) == {"x3"}
    assert lab.passes("u3", from_work(f.tcp(NET, HOST, 1000, 22))) == set()
    assert lab.passes("u3", from_work(f.tcp(NET, WORK, 1000, 22))) == set()
    counted = lab.counted()
    assert (counted["u3-host"], counted["u3-nowhere"]) == (1, 1)
    lab.ask(anew=1)
    lab.plan(wire(12, WORK, "d3"), uplink(), hosts=(HOST, "198.18.0.0/24"))  # a network that is this host
    assert lab.passes("u3", from_work(f.tcp(NET, "198.18.0.9", 1000, 22))) == set()
    assert lab.passes("u3", from_work(f.tcp(NET, OUTSIDE, 1000, 80))) == {"x3"}
    lab.begin()
    assert lab.passes("x3", from_net(f.tcp(OUTSIDE, NET, 80, 1000, flags=0x12))) == {"u3"}


def test_the_uplink_cannot_pretend_to_be_a_qube(lab: Lab) -> None:
    for source in (WORK, "10.138.1.1", NET):
        assert lab.passes("x3", from_net(f.tcp(source, NET, 80, 1000, flags=0x12))) == set()
    assert lab.passes("x3", from_net(f.tcp(OUTSIDE, WORK, 80, 1000, flags=0x12))) == set()
    assert lab.counted()["x3-spoof"] == 3


def test_an_uplink_carries_ipv6_of_a_net_qube_that_has_it(lab: Lab) -> None:
    def out(source: str, target: str) -> set[str]:
        return lab.passes("u3", from_work(f.tcp6(source, target, 1000, 80), 0x86DD))

    def back(frame: bytes) -> set[str]:
        return lab.passes("x3", from_net(frame, 0x86DD))

    assert out(NET6, OUTSIDE6) == set(), "it has none yet"
    lab.plan(wire(12, WORK, "d3", ip6=WORK6), wire(3, NET, "x3", uplink=True, ip6=NET6))
    assert out(NET6, OUTSIDE6) == {"x3"}
    before = lab.counted()
    # This host's own address; its loopback and IPv4 in the clothes of IPv6; a qube's; a source that is not its own.
    for source, target in ((NET6, HOST6), (NET6, "::1"), (NET6, f"::ffff:{HOST}"), (NET6, WORK6), (WORK6, OUTSIDE6)):
        assert out(source, target) == set(), (source, target)
    counted = lab.counted()
    found = {
        cause: counted.get(f"u3-{cause}", 0) - before.get(f"u3-{cause}", 0) for cause in ("host", "nowhere", "spoof")
    }
    assert found == {"host": 1, "nowhere": 3, "spoof": 1}

    assert back(f.tcp6(OUTSIDE6, NET6, 80, 1000, flags=0x12)) == {"u3"}
    assert back(f.icmp6(OUTSIDE6, NET6, 129)) == {"u3"}
    assert back(f.tcp6(OUTSIDE6, NET6, 80, 1000)) == set(), "a connection inward"
    assert back(f.tcp6(OUTSIDE6, WORK6, 80, 1000, flags=0x12)) == set()
    assert back(f.tcp6(WORK6, NET6, 80, 1000, flags=0x12)) == set()
    for kind in (134, 135, 136, 137):
        assert back(f.icmp6("fe80::1", NET6, kind)) == set()

    # A net qube that may be reached from outside is told of no routers and neighbours all the same.
    lab.plan(wire(3, NET, "x3", uplink=True, ip6=NET6, inbound=True))
    assert back(f.tcp6(OUTSIDE6, NET6, 80, 1000)) == {"u3"}
    for kind in (134, 135, 136, 137):
        assert back(f.icmp6(OUTSIDE6, NET6, kind)) == set()


def test_rules_about_ipv6_hold_at_an_uplink(lab: Lab) -> None:
    rule = {"action": "accept", "proto": "tcp", "dst6": f"{OUTSIDE6}/128", "dstports": "80-80"}
    lab.plan(wire(3, NET, "x3", rule, uplink=True, ip6=NET6))
    assert lab.passes("u3", from_work(f.tcp6(NET6, OUTSIDE6, 1000, 80), 0x86DD)) == {"x3"}
    assert lab.passes("u3", from_work(f.tcp6(NET6, OUTSIDE6, 1000, 443), 0x86DD)) == set()
    assert lab.passes("u3", from_work(f.tcp6(NET6, "2001:db8:2::8", 1000, 80), 0x86DD)) == set()


def test_a_wire_without_its_other_end_lets_nothing_through(lab: Lab) -> None:
    lab.plan(wire(12, WORK, None), serves=False)
    assert lab.send("u12", from_work(f.udp(WORK, OUTSIDE, 1000, 53))) == {}
    lab.plan(wire(12, WORK, "d3"), uplink())
    assert lab.passes("u12", from_work(f.udp(WORK, OUTSIDE, 1000, 53))) == {"d3"}


def test_a_hidden_address_is_changed_on_the_wire(lab: Lab) -> None:
    lab.plan(wire(14, HIDDEN, "d3", seen_ip=FAKE), uplink())
    out = lab.send("u14", from_work(f.udp(FAKE, OUTSIDE, 1000, 53)), from_work(f.tcp(FAKE, OUTSIDE, 1000, 80)))
    assert out == {"d3": [from_work(f.udp(HIDDEN, OUTSIDE, 1000, 53)), from_work(f.tcp(HIDDEN, OUTSIDE, 1000, 80))]}
    out = lab.send("d3", from_net(f.tcp(OUTSIDE, HIDDEN, 80, 1000, flags=0x12)))
    assert out == {"u14": [from_net(f.tcp(OUTSIDE, FAKE, 80, 1000, flags=0x12))]}
    # Its true address is not its own to use.
    assert lab.passes("u14", from_work(f.udp(HIDDEN, OUTSIDE, 1000, 53))) == set()


def test_the_first_frame_of_a_new_wire_is_judged(lab: Lab) -> None:
    """The tap is up only when its guard is loaded: what is sent before is lost, what is sent after is judged."""
    lab.plan(wire(12, WORK, "d3"), wire(13, MAIL, "d3"), wire(14, HIDDEN, "d3"), uplink())
    spoofed = from_work(f.udp(WORK, OUTSIDE, 1000, 53))
    assert lab.passes("u14", *[spoofed] * 500) == set()
    assert lab.counted()["u14-spoof"] == 500


def test_rules_that_the_kernel_refuses_leave_no_new_tap(lab: Lab) -> None:
    before = lab.ask(silent=1)
    bad = wire(15, "10.137.0.15", "d3", {"action": "accept", "dst4": "not an address"})
    with pytest.raises(AssertionError, match="nft refused"):
        lab.plan(wire(12, WORK, "d3", ip6=WORK6), wire(13, MAIL, "d3"), bad, uplink())
    assert lab.ask(silent=1) == before
    assert lab.passes("u12", from_work(f.udp(WORK, OUTSIDE, 1000, 53))) == {"d3"}


# -- the firewall, row by row: a rule, traffic, whether it passes

PORTS = {"action": "accept", "proto": "tcp", "dstports": "80-90"}
RULES = {
    "no rules": ([], f.udp(WORK, OUTSIDE, 1000, 53), False),
    "accept all": ([ACCEPT], f.udp(WORK, OUTSIDE, 1000, 53), True),
    "drop all": ([{"action": "drop"}], f.udp(WORK, OUTSIDE, 1000, 53), False),
    "first rule counts": ([{"action": "drop", "proto": "udp"}, ACCEPT], f.udp(WORK, OUTSIDE, 1000, 53), False),
    "the other protocol": ([{"action": "drop", "proto": "udp"}, ACCEPT], f.tcp(WORK, OUTSIDE, 1000, 53), True),
    "its address": ([{"action": "accept", "dst4": OUTSIDE}], f.tcp(WORK, OUTSIDE, 1000, 80), True),
    "another address": ([{"action": "accept", "dst4": OUTSIDE}], f.tcp(WORK, "198.51.100.8", 1000, 80), False),
    "its network": ([{"action": "accept", "dst4": "198.51.100.0/24"}], f.tcp(WORK, "198.51.100.8", 1000, 80), True),
    "all networks": ([{"action": "accept", "dst4": "0.0.0.0/0"}], f.tcp(WORK, OUTSIDE, 1000, 80), True),
    "a network of IPv6": ([{"action": "accept", "dst6": "::/0"}], f.tcp(WORK, OUTSIDE, 1000, 80), False),
    "its port": ([{"action": "accept", "proto": "tcp", "dstports": "80-80"}], f.tcp(WORK, OUTSIDE, 1000, 80), True),
    "a port below": ([PORTS], f.tcp(WORK, OUTSIDE, 1, 79), False),
    "first of the range": ([PORTS], f.tcp(WORK, OUTSIDE, 1, 80), True),
    "last of the range": ([PORTS], f.tcp(WORK, OUTSIDE, 1, 90), True),
    "a port above": ([PORTS], f.tcp(WORK, OUTSIDE, 1, 91), False),
    "the port of UDP": ([PORTS], f.udp(WORK, OUTSIDE, 1, 80), False),
    "ping": ([{"action": "accept", "proto": "icmp"}], f.icmp(WORK, OUTSIDE), True),
    "a type of ICMP": ([{"action": "accept", "proto": "icmp", "icmptype": "8"}], f.icmp(WORK, OUTSIDE), True),
    "another type": ([{"action": "accept", "proto": "icmp", "icmptype": "8"}], f.icmp(WORK, OUTSIDE, 13), False),
    "DNS to the name server": ([{"action": "accept", "specialtarget": "dns"}], f.udp(WORK, "10.139.1.1", 1, 53), True),
    "DNS by TCP": ([{"action": "accept", "specialtarget": "dns"}], f.tcp(WORK, "10.139.1.2", 1, 53), True),
    "DNS elsewhere": ([{"action": "accept", "specialtarget": "dns"}], f.udp(WORK, OUTSIDE, 1, 53), False),
    "another port there": ([{"action": "accept", "specialtarget": "dns"}], f.udp(WORK, "10.139.1.1", 1, 54), False),
    "DNS by UDP alone": (
        [{"action": "accept", "specialtarget": "dns", "proto": "udp"}], f.tcp(WORK, "10.139.1.1", 1, 53), False
    ),
    "before its end": ([{"action": "accept", "expire": "4000000000"}], f.udp(WORK, OUTSIDE, 1, 53), True),
    "after its end": ([{"action": "accept", "expire": "1000000000"}], f.udp(WORK, OUTSIDE, 1, 53), False),
    "a name is judged elsewhere": (
        [{"action": "accept", "dsthost": "a.example", "proto": "tcp", "dstports": "443-443"}],
        f.tcp(WORK, OUTSIDE, 1, 443), True,
    ),
    "but not another port": (
        [{"action": "accept", "dsthost": "a.example", "proto": "tcp", "dstports": "443-443"}],
        f.tcp(WORK, OUTSIDE, 1, 80), False,
    ),
    "a name that is dropped": ([{"action": "drop", "dsthost": "a.example"}, ACCEPT], f.tcp(WORK, OUTSIDE, 1, 80), True),
}  # fmt: skip


def test_rules_mean_what_they_say(lab: Lab) -> None:
    wrong = {}
    for what, (rules, packet, passes) in RULES.items():
        lab.plan({**wire(12, WORK, "d3"), "rules": rules}, wire(13, MAIL, "d3"), uplink())
        found = lab.passes("u12", from_work(packet)) == {"d3"}
        if found is not passes:
            wrong[what] = found
    assert wrong == {}


def test_what_is_refused_is_answered(lab: Lab) -> None:
    lab.plan({**wire(12, WORK, "d3"), "rules": []}, uplink())
    back = lab.send("u12", from_work(f.tcp(WORK, OUTSIDE, 1000, 80)))
    answer = bytes.fromhex(back["u12"][0])
    assert (
        list(back) == ["u12"] and answer[23] == 1 and answer[34:36] == b"\x03\x0d"
    )  # ICMP: administratively prohibited


def test_a_tightened_rule_cuts_what_is_open(lab: Lab) -> None:
    data = from_work(f.tcp(WORK, OUTSIDE, 1000, 80, flags=0x18))  # in the middle of a connection
    assert lab.passes("u12", data) == {"d3"}
    lab.plan({**wire(12, WORK, "d3"), "rules": [{"action": "accept", "dst4": "203.0.113.1"}]}, uplink())
    assert lab.passes("u12", data) == set()


def test_rules_of_one_qube_are_not_anothers(lab: Lab) -> None:
    lab.plan({**wire(12, WORK, "d3"), "rules": []}, wire(13, MAIL, "d3"), uplink())
    assert lab.passes("u12", from_work(f.udp(WORK, OUTSIDE, 1, 9))) == set()
    assert lab.passes("u13", from_work(f.udp(MAIL, OUTSIDE, 1, 9))) == {"d3"}


def test_two_hundred_changes_leave_the_last(lab: Lab) -> None:
    for number in range(200):
        rules = [{"action": "accept", "dst4": f"203.0.113.{number % 250}"} for _copy in range(number % 7 + 1)]
        lab.plan({**wire(12, WORK, "d3"), "rules": rules}, wire(13, MAIL, "d3"), uplink())
    passes = [n for n in range(195, 205) if lab.passes("u12", from_work(f.udp(WORK, f"203.0.113.{n}", 1, 9)))]
    assert passes == [199]


def test_full_rules_load_quickly(lab: Lab) -> None:
    rules = [
        {"action": "accept", "proto": "tcp", "dst4": f"203.0.113.{n}", "dstports": f"{n + 1}-900"} for n in range(256)
    ]
    lab.plan({**wire(12, WORK, "d3"), "rules": rules}, uplink())
    assert lab.passes("u12", from_work(f.tcp(WORK, "203.0.113.255", 1, 900))) == {"d3"}
    assert lab.passes("u12", from_work(f.tcp(WORK, "203.0.113.255", 1, 901))) == set()


def test_the_link_is_down_until_its_rules_are_loaded(lab: Lab) -> None:
    """Rules that are refused leave a moment in which the tap would be there without any: it must never be up then."""
    flags = lab.ask(refused={"tap": "u77"})
    assert flags and not any(flags), flags
