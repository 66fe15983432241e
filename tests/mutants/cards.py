"""Mutants of cards as uplinks: which may be given, that none is lost, what passes their wires, what DHCP may say."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CARDS = "src/casemate/host/cards.py"
_UPLINK = "src/casemate/network/card_uplink.py"
_GUARD = "src/casemate/network/guard_lan.py"
_DHCP = "src/casemate/wire/dhcp.py"
_THERE = "tests/component/test_cards.py::"
_WIRES = "tests/component/test_wires_lan.py::"
_REFUSED = f"{_THERE}test_what_cannot_be_given_is_refused_by_name"
_BACK = f"{_THERE}test_a_card_goes_and_comes_back_as_it_was"
_PRETENDS = f"{_WIRES}test_the_net_qube_cannot_pretend"
_OUTSIDE = f"{_WIRES}test_what_no_machine_outside_may_send_is_dropped"
_ANSWERS = "tests/unit/test_dhcp.py::test_what_is_no_answer_is_refused"


def _card(ident: str, what: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(ident, what, file, old, new, tests, slow=True, root=True)


def _guard(ident: str, what: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(ident, what, _GUARD, old, new, tests, slow=True)


MUTANTS = (
    Mutant(
        "card-chain-gone",
        "rules can be changed when a card took its chain with it",
        "src/casemate/network/parts.py",
        """            yield _add("chain", name=name)
            yield {"flush": {"chain": _named(name)}}
""",
        """            yield {"flush": {"chain": _named(name)}}
""",
        (f"{_WIRES}test_a_card_that_vanished_leaves_rules_that_can_be_changed",),
        slow=True,
    ),
    _card(
        "card-overtaken",
        "a card is given before it is taken back",
        _CARDS,
        "        await asyncio.wait([done])\n",
        "",
        f"{_THERE}test_a_start_that_is_given_up_leaves_the_card_to_the_host",
    ),
    _card(
        "card-namesake",
        "an interface of another namespace stays there",
        _CARDS,
        "return link if link is not None and _address(link) == address else None",
        "return link",
        f"{_THERE}test_another_namespaces_interface_of_that_name_is_left_alone",
    ),
    _card(
        "card-only-way",
        "the host keeps a way to the network",
        _CARDS,
        'if _ways(netlink, links) == {link["index"]}:',
        "if False:",
        _REFUSED,
    ),
    _card(
        "card-part", "a card that is a part of something stays", _CARDS, "if master is not None:", "if False:", _REFUSED
    ),
    _card(
        "card-below",
        "a card that something is above stays",
        _CARDS,
        'if below and _kind(found) != "veth":',
        "if False:",
        _REFUSED,
    ),
    _card("card-kinds", "only Ethernet cards are given", _CARDS, "if kind not in _SHAREABLE:", "if False:", _REFUSED),
    _card(
        "card-second",
        "a card is of one net qube",
        _UPLINK,
        "(other.moved or uplink.kind == CARD):",
        "False:",
        f"{_THERE}test_a_card_is_of_one_net_qube",
    ),
    _card(
        "card-record",
        "what is done to a card is written down before",
        _UPLINK,
        "            card_records.write(self._settings.run, record)\n",
        "            pass\n",
        f"{_THERE}test_killed_at_any_stage_the_card_is_back",
    ),
    _card(
        "card-holder",
        "the room of a card does not end with daemon and room process",
        _UPLINK,
        "                await self._hold(name, room)\n                await in_thread(cards.take",
        "                await in_thread(cards.take",
        f"{_THERE}test_a_card_outlives_daemon_and_room",
    ),
    _card(
        "card-holder-left",
        "no process is left for a card that is back",
        _UPLINK,
        "        await in_thread(card_records.let_go, self._settings.run, name)\n",
        "",
        _BACK,
    ),
    _card(
        "card-up", "a card that was in use is in use again", _CARDS, "        if up:\n", "        if False:\n", _BACK
    ),
    _card(
        "card-listens",
        "a card listens for its net qube",
        _CARDS,
        'netlink.fdb("add", ifindex=link["index"], lladdr=mac)',
        "pass",
        _BACK,
    ),
    _card(
        "card-name",
        "a card whose name was given away is not lost",
        _CARDS,
        "for wanted in (name, *_SPARE_NAMES):",
        "for wanted in (name,):",
        f"{_THERE}test_a_name_that_was_given_away_meanwhile",
    ),
    _card(
        "card-private",
        "net qubes on one card are no neighbours",
        _CARDS,
        'macvlan_mode="private"',
        'macvlan_mode="bridge"',
        f"{_THERE}test_a_shared_card_stays_and_the_host_does_not_hear_what_is_for_the_net_qube",
    ),
    _card(
        "card-room-removes",
        "the room removes no card",
        "src/casemate/host/room/links.py",
        " if _kind(link) in _REMOVABLE}",
        "}",
        f"{_WIRES}test_a_card_in_the_room_is_never_removed",
    ),
    _card(
        "card-clean",
        "clean gives cards back",
        "src/casemate/cli/clean.py",
        '["devices", "cards"]',
        '["devices"]',
        f"{_THERE}test_clean_gives_cards_back",
    ),
    _guard(
        "lan-chaddr",
        "a net qube asks for itself alone",
        '            match(chaddr, int(wire.mac.replace(":", ""), 16)),\n',
        "",
        _PRETENDS,
    ),
    _guard(
        "lan-qubes",
        "no address of a qube goes out",
        'counted(wire.tap, "spoof", match(source, _networks((*INNER, *NOWHERE)))),',
        "",
        _PRETENDS,
    ),
    _guard(
        "lan-as-host",
        "a net qube is not this host",
        'counted(wire.tap, "spoof", match(source, f"@{HOST_SET[4]}")),',
        "",
        _PRETENDS,
    ),
    _guard(
        "lan-many",
        "nothing but ARP and DHCP goes to all",
        'counted(tap, "nowhere", _to_many()),\n        *_own_address',
        "*_own_address",
        _PRETENDS,
    ),
    _guard("lan-arp-mac", "N2: ARP with one's own MAC", "*arp_of(wire.mac),", "*arp_of(wire.mac)[:-1],", _PRETENDS),
    _guard(
        "lan-given",
        "a given address is the only one",
        'match(source, lan.ip, "!=")',
        'match(field("ip", "ttl"), 0)',
        f"{_WIRES}test_a_given_address_is_the_only_one",
    ),
    _guard(
        "lan-others",
        "frames for others do not reach the net qube",
        'counted(tap, "mac", match(field("ether", "daddr"), one_of([wire.mac, _BROADCAST]), "!=")),',
        "",
        _OUTSIDE,
    ),
    _guard(
        "lan-source",
        "nobody outside has a qube's address",
        'counted(tap, "spoof", match(source, _networks((*INNER, *NOWHERE)))),',
        "",
        _OUTSIDE,
    ),
    Mutant(
        "lan-other-card",
        "traffic goes by the card that the qube was started with",
        "src/casemate/network/plan.py",
        "if way is None or way.uplink != uplink:",
        "if way is None:",
        ("tests/unit/test_uplinks.py::test_the_wire_goes_to_the_card_that_is_there_and_to_no_other",),
    ),
    Mutant(
        "uplink-names",
        "names of cards are no options, paths or signs",
        "src/casemate/model/uplinks.py",
        "if not _CARD.fullmatch(card) or _WIRES.fullmatch(card):",
        "if False:",
        ("tests/unit/test_uplinks.py::test_what_is_no_uplink_is_refused_and_is_none",),
    ),
    Mutant(
        "dhcp-other",
        "an answer to that question",
        _DHCP,
        "if (op, htype, hlen, its, chaddr[:6]) != (2, 1, 6, xid, mac):",
        "if (op, htype, hlen) != (2, 1, 6):",
        (_ANSWERS,),
    ),
    Mutant(
        "dhcp-inner",
        "a network outside gives no address of a qube",
        _DHCP,
        "if kind[0] != NAK and not is_outside(address):",
        "if False:",
        (_ANSWERS,),
    ),
    Mutant(
        "dhcp-router",
        "a router outside has no address of a qube",
        _DHCP,
        "            if not is_outside(address):\n",
        "            if False:\n",
        ("tests/unit/test_dhcp.py::test_half_of_an_answer_is_none",),
    ),
)
