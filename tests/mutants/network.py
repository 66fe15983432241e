"""Mutants of the guard of wires, the firewall, what a net qube and its name service let through, and the clock."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_GUARD = "src/casemate/network/guard.py"
_NFT = "src/casemate/wire/nft.py"
_DNS = "src/casemate/wire/dns.py"
_WIRES = "tests/component/test_wires.py::"
_HOSTILE = f"{_WIRES}test_hostile_frame_is_dropped_and_counted"
_RULES = (f"{_WIRES}test_rules_mean_what_they_say",)
_NAMES = "tests/unit/test_dns.py::"


def _guard(ident: str, what: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(ident, what, _GUARD, old, new, tests or (_HOSTILE,), slow=True)


MUTANTS = (
    _guard(
        "wire-mac",
        "N2: source MAC",
        'match(field("ether", "saddr"), wire.mac, "!=")',
        'match(field("ether", "saddr"), 0)',
    ),
    _guard(
        "wire-address",
        "N2: source address",
        'match(field("ip", "saddr"), wire.seen_ip, "!=")',
        'match(field("ip", "ttl"), 0)',
    ),
    _guard(
        "wire-address6",
        "N2: source address of IPv6",
        'match(field("ip6", "saddr"), wire.ip6, "!=")',
        'match(field("ip6", "hoplimit"), 0)',
    ),
    _guard(
        "wire-kinds",
        "N2: kinds of frames",
        'match(field("ether", "type"), one_of(kinds), "!=")',
        'match(field("ether", "type"), 1)',
        f"{_WIRES}test_a_net_qube_cannot_pretend",
    ),
    _guard(
        "wire-arp-address", "N2: ARP about one's own address", 'match(field("arp", "saddr ip"), wire.seen_ip),\n', ""
    ),
    _guard("wire-arp-mac", "N2: ARP with one's own MAC", "*arp_of(wire.mac),", "*arp_of(wire.mac)[:-1],"),
    _guard(
        "wire-options",
        "N6: no source routes",
        'match(field("ip", "hdrlength"), 5, "!=")',
        'match(field("ip", "hdrlength"), 1)',
    ),
    _guard(
        "wire-nowhere",
        "N6: no loopback, multicast, local link",
        'match(field("ip", "daddr"), one_of([network(n) for n in NOWHERE]))',
        'match(field("ip", "ttl"), 0)',
    ),
    _guard(
        "wire-pieces", "N6: no pieces of TCP", 'match(meta("l4proto"), PROTOCOLS["tcp"])', 'match(meta("l4proto"), 250)'
    ),
    _guard(
        "wire-advertisements",
        "N2: no router advertisements",
        'match(field("icmpv6", "type"), _DISCOVERY)),\n        counted(tap, "nowhere", match(field("udp"',
        'match(field("icmpv6", "type"), 250)),\n        counted(tap, "nowhere", match(field("udp"',
    ),
    _guard(
        "uplink6-discovery",
        "N2: no router advertisements from the host's network",
        'counted(tap, "type", match(field("icmpv6", "type"), _DISCOVERY)),',
        "",
        f"{_WIRES}test_an_uplink_carries_ipv6_of_a_net_qube_that_has_it",
    ),
    _guard(
        "uplink6-host",
        "N1: the host's own addresses are out of reach by IPv6 too",
        'counted(wire.tap, "host", match(field("ip6", "daddr"), f"@{HOST_SET[6]}")),',
        "",
        f"{_WIRES}test_an_uplink_carries_ipv6_of_a_net_qube_that_has_it",
    ),
    _guard(
        "wire-sibling",
        "a net qube speaks for no other qube",
        '*_others(served.ip, QUBES, "ip")',
        'match(field("ip", "ttl"), 0)',
        f"{_WIRES}test_a_net_qube_cannot_pretend",
    ),
    _guard(
        "wire-uplink-source",
        "the uplink has no address of a qube",
        '*_others(None, QUBES, "ip")',
        'match(field("ip", "ttl"), 0)',
        f"{_WIRES}test_the_uplink_cannot_pretend_to_be_a_qube",
    ),
    _guard(
        "wire-host",
        "N1: this host is out of reach",
        'match(field("ip", "daddr"), f"@{HOST_SET[4]}")',
        'match(field("ip", "ttl"), 0)',
        f"{_WIRES}test_the_uplink_reaches_outside_and_not_this_host",
    ),
    _guard(
        "wire-inbound",
        "nobody opens a connection to a qube",
        'match(flags, "syn")',
        'match(field("tcp", "dport"), 0)',
        f"{_WIRES}test_nobody_opens_a_connection_to_a_qube",
    ),
    _guard(
        "wire-answers",
        "only answers to datagrams",
        '*_datagram(family), match(place, remembered, "!=")',
        'match(field("udp", "dport"), 0)',
        f"{_WIRES}test_only_answers_to_datagrams_come_back",
    ),
    _guard(
        "wire-default",
        "what no rule lets through is refused",
        "    out.extend(refuse)\n    return out",
        "    out.append(accept)\n    return out",
        *_RULES,
    ),
    Mutant(
        "clock-step",
        "a clock that jumps is refused",
        "src/casemate/wire/clock.py",
        "if not force and abs(wanted - now) > MAX_STEP * _SECOND:",
        "if False:",
        ("tests/unit/test_wire_clock.py",),
    ),
    Mutant(
        "rule-family",
        "a rule about one family says nothing of the other",
        _NFT,
        "    if wrong_family in rule:\n        return []\n",
        "",
        _RULES,
        slow=True,
    ),
    Mutant(
        "rule-end",
        "a rule ends",
        _NFT,
        'base.append(match(meta("time"), int(rule["expire"]), "<"))',
        "pass",
        _RULES,
        slow=True,
    ),
    Mutant(
        "rule-name-drop",
        "a name that is dropped is judged where names are known",
        _NFT,
        '        elif rule["action"] == "drop":\n            return []\n',
        "",
        _RULES,
        slow=True,
    ),
    Mutant(
        "wire-up-early",
        "N4: rules before the link",
        "src/casemate/host/room/server.py",
        "        made = self.links.make(taps)\n        try:\n",
        "        made = self.links.make(taps)\n        self.links.up(made)\n        try:\n",
        ("tests/component/test_wires.py::test_the_link_is_down_until_its_rules_are_loaded",),
        slow=True,
    ),
    Mutant(
        "wire-refused-stays",
        "N4: no tap without rules",
        "src/casemate/host/room/server.py",
        "            self.links.remove(made)\n            raise\n        self.links.remove(remove)",
        "            raise\n        self.links.remove(remove)",
        (f"{_WIRES}test_rules_that_the_kernel_refuses_leave_no_new_tap",),
        slow=True,
    ),
    Mutant(
        "dns-other-name",
        "addresses of the name that was asked",
        _DNS,
        "return [(address, min(least, ttl)) for address, ttl in addresses.get(name, ())][:MAX_ADDRESSES]",
        "return [one for found in addresses.values() for one in found][:MAX_ADDRESSES]",
        (f"{_NAMES}test_records_of_other_names_count_for_nothing",),
    ),
    Mutant(
        "dns-other-question",
        "an answer to that question",
        _DNS,
        "    if not found.same(asked):\n",
        "    if False:\n",
        (f"{_NAMES}test_what_is_no_answer_is_refused",),
    ),
    Mutant(
        "dns-many",
        "few addresses of an answer",
        _DNS,
        "[:MAX_ADDRESSES]",
        "",
        (f"{_NAMES}test_many_addresses_are_bounded",),
    ),
    Mutant(
        "proxy-inside",
        "the updates proxy does not go between qubes",
        "src/casemate/agent/updates_proxy.py",
        " or (first == 10 and 137 <= second <= 139)",
        "",
        ("tests/unit/test_updates_proxy.py::test_addresses_that_it_does_not_go_to",),
    ),
    Mutant(
        "proxy-ports",
        "the updates proxy goes to two ports",
        "src/casemate/agent/updates_proxy.py",
        "    if port not in PORTS:\n",
        "    if False:\n",
        ("tests/unit/test_updates_proxy.py::test_anything_else_is_refused",),
    ),
    Mutant(
        "rules-lost",
        "a net qube loads each change of rules",
        "src/casemate/agent/net_qube.py",
        "while changed := self._changed():",
        "if changed := self._changed():",
        ("tests/component/test_net_qube.py::test_rules_that_come_while_others_are_read_are_loaded_too",),
    ),
    Mutant(
        "rules-untold",
        "a net qube is told of rules also when an attempt broke off",
        "src/casemate/engine/database_sync.py",
        ", *(wanted if again else ())]",
        "]",
        ("tests/component/test_database_sync.py::test_rules_are_told_of_although_an_attempt_broke_off",),
        slow=True,
    ),
    Mutant(
        "host-anycast",
        "N1: the host's anycast addresses are out of reach",
        "src/casemate/host/own_addresses.py",
        "0x80000000 | 0x00100000",
        "0x80000000",
        ("tests/component/test_own_addresses.py::test_the_anycast_address_of_a_router_is_this_host",),
    ),
    Mutant(
        "host-networks",
        "N1: networks that are the host are out of reach",
        "src/casemate/host/own_addresses.py",
        "int(address, 16), int(length, 16)",
        "int(address, 16), 128",
        ("tests/component/test_own_addresses.py::test_addresses_and_local_networks_are_this_host",),
    ),
)
