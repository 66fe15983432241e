"""What passes a wire that goes to a network outside by a card: real taps and real nft rules, frames sent by hand."""

from __future__ import annotations

import os
import struct
import subprocess
from typing import Any

import pytest

from casemate.network.guard_lan import LAN_ARP_RATE
from casemate.network.plan import SERVED_MAC
from tests.component import frames as f
from tests.component.test_wires import HOST, OUTSIDE, WORK, Lab, process, wire  # noqa: F401  # process is a fixture

NET_MAC, ROUTER_MAC, OTHER_MAC = "02:00:5e:00:00:03", "52:54:00:00:00:01", "00:16:3e:5e:6c:99"
CARD = "eth7"
LEASED, ROUTER = "192.0.2.77", "192.0.2.1"
NONE = "00:00:00:00:00:00"


def lan(ip: str | None = None, **more: Any) -> dict[str, Any]:
    inner = "10.137.0.3"
    return wire(3, inner, "x3", uplink=True, mac=NET_MAC, lan={"interface": CARD, "ip": ip}, **more)


@pytest.fixture
def lab(process: Lab) -> Lab:  # noqa: F811
    """A client, and a net qube that asks for its address; all counters at none."""
    process.ask(anew=1)
    process.plan(wire(12, WORK, "d3"), lan())
    return process


def out(body: bytes, kind: int = 0x0800, source: str = NET_MAC, target: str = ROUTER_MAC) -> str:
    return f.ethernet(source, target, kind, body)


def back(body: bytes, kind: int = 0x0800, source: str = ROUTER_MAC, target: str = NET_MAC) -> str:
    return f.ethernet(source, target, kind, body)


def question(mac: str = NET_MAC) -> bytes:
    """A DHCPDISCOVER for a MAC address (RFC 2131)."""
    head = struct.pack("!BBBBIHH16x", 1, 1, 6, 0, 7, 0, 0)
    body = head + bytes.fromhex(mac.replace(":", "")) + bytes(10 + 192) + b"\x63\x82\x53\x63\x35\x01\x01\xff"
    return f.udp("0.0.0.0", "255.255.255.255", 68, 67, body)


def test_a_net_qube_asks_for_an_address_and_gets_it(lab: Lab) -> None:
    asked = out(question(), target=f.BROADCAST)
    assert lab.send("u3", asked) == {CARD: [asked]}
    for target in (NET_MAC, f.BROADCAST):
        answer = back(f.udp(ROUTER, "255.255.255.255", 67, 68, b"offer"), target=target)
        assert lab.send(CARD, answer) == {"u3": [answer]}


def test_traffic_keeps_the_mac_addresses_that_the_net_qube_chose(lab: Lab) -> None:
    packet = out(f.tcp(LEASED, OUTSIDE, 1000, 80))
    assert lab.send("u3", packet) == {CARD: [packet]}
    answer = back(f.tcp(OUTSIDE, LEASED, 80, 1000, flags=0x12))
    assert lab.send(CARD, answer) == {"u3": [answer]}
    lab.send("u3", out(f.udp(LEASED, OUTSIDE, 1000, 53)))
    assert lab.passes(CARD, back(f.udp(OUTSIDE, LEASED, 53, 1000))) == {"u3"}
    asks = out(f.arp(1, NET_MAC, LEASED, NONE, ROUTER), 0x0806, target=f.BROADCAST)
    assert lab.send("u3", asks) == {CARD: [asks]}
    assert lab.passes(CARD, back(f.arp(2, ROUTER_MAC, ROUTER, NET_MAC, LEASED), 0x0806)) == {"u3"}
    assert lab.passes(CARD, back(f.arp(1, ROUTER_MAC, ROUTER, NONE, LEASED), 0x0806, target=f.BROADCAST)) == {"u3"}


HOSTILE = {
    "another MAC": ("mac", out(f.tcp(LEASED, OUTSIDE, 1, 80), source=OTHER_MAC)),
    "ARP with another inner MAC": ("arp", out(f.arp(2, OTHER_MAC, LEASED, ROUTER_MAC, ROUTER), 0x0806)),
    "ARP about a qube": ("arp", out(f.arp(2, NET_MAC, WORK, ROUTER_MAC, ROUTER), 0x0806)),
    "ARP about this host": ("arp", out(f.arp(2, NET_MAC, HOST, ROUTER_MAC, ROUTER), 0x0806)),
    "a question for another MAC": ("nowhere", out(question(OTHER_MAC), target=f.BROADCAST)),
    "an answer of DHCP": ("nowhere", out(f.udp(LEASED, "192.0.2.9", 67, 68))),
    "an address of a qube": ("spoof", out(f.tcp(WORK, OUTSIDE, 1, 80))),
    "its own address between qubes": ("spoof", out(f.tcp("10.137.0.3", OUTSIDE, 1, 80))),
    "an address of name servers": ("spoof", out(f.tcp("10.139.1.1", OUTSIDE, 1, 80))),
    "this host's address": ("spoof", out(f.tcp(HOST, OUTSIDE, 1, 80))),
    "a loopback": ("spoof", out(f.tcp("127.0.0.1", OUTSIDE, 1, 80))),
    "to this host": ("host", out(f.tcp(LEASED, HOST, 1, 22))),
    "to a qube": ("nowhere", out(f.tcp(LEASED, WORK, 1, 22))),
    "to a name server of qubes": ("nowhere", out(f.tcp(LEASED, "10.139.1.1", 1, 53))),
    "to all": ("nowhere", out(f.udp(LEASED, "255.255.255.255", 1, 9), target=f.BROADCAST)),
    "to the network's all": ("nowhere", out(f.udp(LEASED, "192.0.2.255", 1, 9), target=f.BROADCAST)),
    "multicast": ("nowhere", out(f.udp(LEASED, "224.0.0.251", 5353, 5353), target="01:00:5e:00:00:fb")),
    "a VLAN": ("type", out(b"\0\5\x08\0" + f.tcp(LEASED, OUTSIDE, 1, 80), 0x8100)),
    "spanning tree": ("type", out(b"\x42\x42\x03" + b"\0" * 35, 38, target="01:80:c2:00:00:00")),
    "IPv6": ("type", out(f.icmp6("fe80::1", "ff02::1", 134), 0x86DD)),
    "a piece of TCP": ("nowhere", out(f.ip4(LEASED, OUTSIDE, 6, b"\0" * 8, fragment=0x2000))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_the_net_qube_cannot_pretend(lab: Lab, what: str) -> None:
    cause, frame = HOSTILE[what]
    assert lab.passes("u3", frame) == set()
    assert lab.counted().get(f"u3-{cause}") == 1, lab.counted()
    assert lab.passes("u3", out(f.tcp(LEASED, OUTSIDE, 1, 80))) == {CARD}


def test_questions_are_slow(lab: Lab) -> None:
    assert 1 <= len(lab.send("u3", *[out(question(), target=f.BROADCAST)] * 200)[CARD]) <= 40


FROM_OUTSIDE = {
    "for another machine": ("mac", back(f.tcp(OUTSIDE, LEASED, 80, 1, flags=0x12), target=OTHER_MAC)),
    "an address of a qube": ("spoof", back(f.tcp(WORK, LEASED, 80, 1, flags=0x12))),
    "an address of name servers": ("spoof", back(f.udp("10.139.1.1", LEASED, 53, 1))),
    "to a qube": ("nowhere", back(f.tcp(OUTSIDE, WORK, 80, 1, flags=0x12))),
    "to the address between qubes": ("nowhere", back(f.tcp(OUTSIDE, "10.137.0.3", 80, 1, flags=0x12))),
    "to all": ("nowhere", back(f.udp(ROUTER, "192.0.2.255", 137, 137), target=f.BROADCAST)),
    "ARP about a qube": ("arp", back(f.arp(2, ROUTER_MAC, WORK, NET_MAC, LEASED), 0x0806)),
    "a VLAN": ("type", back(b"\0\5\x08\0" + f.tcp(OUTSIDE, LEASED, 80, 1, flags=0x12), 0x8100)),
    "a router's advertisement": ("type", back(f.icmp6("fe80::1", "ff02::1", 134), 0x86DD, target="33:33:00:00:00:01")),
}


@pytest.mark.parametrize("what", FROM_OUTSIDE)
def test_what_no_machine_outside_may_send_is_dropped(lab: Lab, what: str) -> None:
    cause, frame = FROM_OUTSIDE[what]
    assert lab.passes(CARD, frame) == set()
    assert lab.counted().get(f"x3-{cause}") == 1, lab.counted()


@pytest.mark.parametrize(
    "body",
    [f.tcp(OUTSIDE, LEASED, 1000, 22), f.icmp(OUTSIDE, LEASED), f.udp(OUTSIDE, LEASED, 53, 1000)],
    ids=["TCP", "ping", "UDP"],
)
def test_nobody_outside_opens_a_connection(lab: Lab, body: bytes) -> None:
    assert lab.passes(CARD, back(body)) == set()
    assert lab.counted().get("u3-inbound") == 1
    lab.plan(wire(12, WORK, "d3"), lan(inbound=True))
    assert lab.passes(CARD, back(body)) == {"u3"}


def test_arp_from_outside_is_bounded(lab: Lab) -> None:
    asks = back(f.arp(1, ROUTER_MAC, ROUTER, NONE, LEASED), 0x0806, target=f.BROADCAST)
    assert 1 <= len(lab.send(CARD, *[asks] * 1000)["u3"]) <= 4 * LAN_ARP_RATE


def test_a_given_address_is_the_only_one(lab: Lab) -> None:
    lab.plan(wire(12, WORK, "d3"), lan(LEASED))
    assert lab.passes("u3", out(f.tcp(LEASED, OUTSIDE, 1, 80))) == {CARD}
    assert lab.passes("u3", out(f.tcp("192.0.2.78", OUTSIDE, 1, 80))) == set()
    assert lab.passes("u3", out(f.arp(1, NET_MAC, "192.0.2.78", NONE, ROUTER), 0x0806)) == set()
    assert lab.passes("u3", out(question(), target=f.BROADCAST)) == set(), "it has one already"
    assert lab.passes(CARD, back(f.tcp(OUTSIDE, LEASED, 80, 1, flags=0x12))) == {"u3"}
    assert lab.passes(CARD, back(f.tcp(OUTSIDE, "192.0.2.78", 80, 1, flags=0x12))) == set()
    assert lab.passes(CARD, back(f.udp(ROUTER, LEASED, 67, 68))) == set()
    assert lab.passes(CARD, back(f.arp(1, ROUTER_MAC, ROUTER, NONE, "192.0.2.78"), 0x0806, target=f.BROADCAST)) == set()
    counted = lab.counted()
    assert (counted["u3-spoof"], counted["u3-arp"], counted["u3-nowhere"]) == (1, 1, 1)
    assert (counted["x3-nowhere"], counted["x3-arp"], counted["u3-inbound"]) == (1, 1, 1)


def test_the_firewall_and_the_guard_of_a_client_are_as_ever(lab: Lab) -> None:
    lab.plan({**wire(12, WORK, "d3"), "rules": [{"action": "accept", "dst4": OUTSIDE}]}, lan())
    mac = "00:16:3e:5e:6c:00"
    assert lab.passes("u12", f.ethernet(mac, SERVED_MAC, 0x0800, f.tcp(WORK, OUTSIDE, 1, 80))) == {"d3"}
    assert lab.passes("u12", f.ethernet(mac, SERVED_MAC, 0x0800, f.tcp(WORK, ROUTER, 1, 80))) == set()
    assert lab.passes("u12", f.ethernet(mac, SERVED_MAC, 0x0800, f.tcp(LEASED, OUTSIDE, 1, 80))) == set()
    rule = {"action": "accept", "proto": "tcp", "dstports": "80-80"}
    lab.plan(wire(12, WORK, "d3"), {**lan(), "rules": [rule]})
    assert lab.passes("u3", out(f.tcp(LEASED, OUTSIDE, 1, 80))) == {CARD}
    assert lab.passes("u3", out(f.tcp(LEASED, OUTSIDE, 1, 25))) == set()


def test_another_card_takes_the_place_of_one(lab: Lab) -> None:
    other = {**lan(), "lan": {"interface": "eth8", "ip": None}}
    lab.plan(wire(12, WORK, "d3"), other)
    assert lab.passes("u3", out(f.tcp(LEASED, OUTSIDE, 1, 80))) == {"eth8"}
    assert lab.passes("eth8", back(f.tcp(OUTSIDE, LEASED, 80, 1, flags=0x12))) == {"u3"}
    assert lab.passes("eth8", back(f.tcp(WORK, LEASED, 80, 1, flags=0x12))) == set()


def test_a_card_that_vanished_leaves_rules_that_can_be_changed(lab: Lab) -> None:
    frame = out(f.tcp(LEASED, OUTSIDE, 1, 80))
    for chain in ("", "x3", ""):
        lab.ask(vanish=[CARD, chain, "u3", "x3"])
        lab.plan(wire(12, WORK, "d3"), {**lan(), "peer": None, "lan": None})
        assert lab.passes("u3", frame) == set()
        lab.plan(wire(12, WORK, "d3"), lan())
        assert lab.passes("u3", frame) == {CARD}
        assert lab.passes(CARD, back(f.tcp(OUTSIDE, LEASED, 80, 1, flags=0x12))) == {"u3"}
        assert lab.passes(CARD, back(f.tcp(WORK, LEASED, 80, 1, flags=0x12))) == set()
    for chain in ("", "x3"):
        lab.ask(vanish=[CARD, chain, "u3", "x3"])
        lab.plan(wire(12, WORK, "d3"), lan())  # it is back before anybody has looked
        assert lab.passes("u3", frame) == {CARD}


@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace of another process is entered by root alone")
def test_a_card_in_the_room_is_never_removed(lab: Lab) -> None:
    """A daemon that has just started removes what its plan does not know; a card that it does not know stays."""
    pid = lab.process.pid
    subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link", "add", "enp9", "type", "veth", "peer", "name", "far"],
        check=True,
    )  # fmt: skip
    try:
        left = lab.ask(unasked=["enp9", "u12"])
        assert "enp9" in left and "u12" not in left
    finally:
        subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link", "del", "enp9"], check=False)
