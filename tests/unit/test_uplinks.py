"""What the features of a net qube's uplink mean, and what they make of it: MAC address, keys, plan, explanation."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from casemate.model import uplinks
from casemate.model.system import System
from casemate.model.uplinks import Uplink, mac_of, parse_uplink, static_of, uplink_of
from casemate.network.explain import explain, parse_place
from casemate.network.keys import network_keys
from casemate.network.plan import Ends, Lan, Way, make_plan
from casemate.wire.errors import ValueInvalidError
from tests.builders import small_system

GIVEN = {"net.uplink-ip": "192.0.2.7/24", "net.uplink-gateway": "192.0.2.1", "net.uplink-dns": "192.0.2.53 192.0.2.54"}


def net_qube(**features: str) -> System:
    system = small_system()
    domain = system.domains["net"]
    for name, value in features.items():
        domain.features[name.replace("__", ".").replace("_", "-")] = value
    return system


def test_forms_of_an_uplink() -> None:
    assert parse_uplink("pasta") == Uplink("pasta")
    assert parse_uplink("card:enp3s0") == Uplink("card", "enp3s0")
    assert parse_uplink("shared:eth0.5") == Uplink("shared", "eth0.5")
    assert str(parse_uplink("card:eth1")) == "card:eth1"


@pytest.mark.parametrize(
    "text",
    ["", "card", "card:", "eth0", "pasta:eth0", "usb:eth0", "card:-x", "card:a/b", "card:a b", "card:../x", "card:@set",
     "card:averyverylongname", "card:u5", "card:d12", "card:x3", "card:lo", "card:eth0\n", "card:*"],
)  # fmt: skip
def test_what_is_no_uplink_is_refused_and_is_none(text: str) -> None:
    with pytest.raises(ValueInvalidError, match="net.uplink"):
        parse_uplink(text)
    assert uplink_of({"net.uplink": text}) is None


def test_an_address_that_is_given() -> None:
    static = static_of(GIVEN)
    assert static is not None and str(static) == "192.0.2.7/24 192.0.2.1 192.0.2.53 192.0.2.54"
    assert str(static_of({"net.uplink-ip": "192.0.2.7/31"})) == "192.0.2.7/31 -"
    assert static_of({}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.uplink-ip", "192.0.2.7"), ("net.uplink-ip", "192.0.2.7/0"), ("net.uplink-ip", "192.0.2.7/255.255.255.0"),
        ("net.uplink-ip", "192.0.2.0/24"), ("net.uplink-ip", "192.0.2.255/24"), ("net.uplink-ip", "10.137.0.9/24"),
        ("net.uplink-ip", "127.0.0.2/8"), ("net.uplink-ip", "224.0.0.1/24"), ("net.uplink-ip", "fe80::1/64"),
        ("net.uplink-gateway", "router"), ("net.uplink-gateway", "10.138.0.1"), ("net.uplink-dns", "192.0.2.1,8.8.8.8"),
        ("net.uplink-dns", "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4"), ("net.uplink-dns", "10.139.1.1"),
    ],
)  # fmt: skip
def test_addresses_that_mean_nothing_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueInvalidError, match=name):
        uplinks.check(name, value)
    with pytest.raises(ValueInvalidError):
        static_of({**GIVEN, name: value})


def test_addresses_that_do_not_fit_together_are_refused() -> None:
    for changed in ({"net.uplink-ip": ""}, {"net.uplink-gateway": "198.51.100.1"}, {"net.uplink-gateway": "192.0.2.7"}):
        with pytest.raises(ValueInvalidError):
            static_of({**GIVEN, **changed})
    for name in (*GIVEN, "net.uplink", "net.other"):
        uplinks.check(name, "")


def test_a_mac_address_of_its_own() -> None:
    one = UUID("6f1c3c62-2a57-4b6c-9f0e-0a4f6bd7d5aa")
    assert mac_of(one) == mac_of(one) != mac_of(uuid4())
    first = int(mac_of(one)[:2], 16)
    assert first & 1 == 0 and first & 2 == 2, "one machine's, and locally administered"
    domain = net_qube(net__uplink="card:eth1").domains["net"]
    assert domain.mac == mac_of(domain.uuid)
    domain.features["net.uplink"] = "pasta"
    assert domain.mac == "00:16:3e:5e:6c:00"
    domain.features["net.uplink"] = "shared:eth1"
    domain.set("mac", "52:54:00:00:00:07")
    assert domain.mac == "52:54:00:00:00:07"


def test_keys_of_a_net_qube_with_a_card() -> None:
    system = net_qube(net__uplink="card:eth1")
    domain = system.domains["net"]
    keys = network_keys(domain, lambda _domain: [])
    assert (keys["/qubes-mac"], keys["/qubes-uplink"]) == (domain.mac, "dhcp")
    assert "/qubes-ip" not in keys and "/qubes-primary-dns" not in keys and keys["/qubes-netvm-gateway"] == domain.ip
    for name, value in GIVEN.items():
        domain.features[name] = value
    assert network_keys(domain, lambda _domain: [])["/qubes-uplink"] == "192.0.2.7/24 192.0.2.1 192.0.2.53 192.0.2.54"
    del domain.features["net.uplink-ip"]
    assert "/qubes-uplink" not in network_keys(domain, lambda _domain: [])


def test_the_wire_goes_to_the_card_that_is_there_and_to_no_other() -> None:
    system = net_qube(net__uplink="card:eth1")
    domain = system.domains["net"]
    plugged = {"net": Ends(domain.mac, True)}

    def wire(**ways: Way):  # type: ignore[no-untyped-def]
        return make_plan(system, plugged, frozenset(), ways, lambda _domain: []).wires[0]

    assert wire().peer is None
    there = wire(net=Way(Uplink("card", "eth1"), "eth1"))
    assert (there.peer, there.exit, there.lan) == (f"x{domain.qid}", "eth1", Lan("eth1", None))
    assert wire(net=Way(Uplink("card", "eth2"), "eth2")).peer is None, "it was started with another one"
    assert wire(net=Way(Uplink("shared", "eth1"), f"x{domain.qid}")).peer is None
    domain.features["net.uplink-ip"] = "192.0.2.7/24"
    assert wire(net=Way(Uplink("card", "eth1"), "eth1")).lan == Lan("eth1", "192.0.2.7")
    domain.features["net.uplink-gateway"] = "198.51.100.1"
    assert wire(net=Way(Uplink("card", "eth1"), "eth1")).peer is None, "what the user gave does not fit together"


def test_the_explanation_names_the_card() -> None:
    domain = net_qube(net__uplink="shared:eth1").domains["net"]
    steps = explain(domain, parse_place("198.51.100.7", 80, "tcp"), lambda _d: [], lambda _n: True, frozenset(), 0)
    assert steps[-1].passes and "card eth1, which it shares with this host" in steps[-1].why
    domain.features["ipv6"] = "1"
    steps = explain(domain, parse_place("2001:db8::7", 80, "tcp"), lambda _d: [], lambda _n: True, frozenset(), 0)
    assert steps[-1].passes is False and "no IPv6 passes the card eth1" in steps[-1].why
