"""The network of a qube as keys of its database, which its agent follows (pure). Keys: those of Qubes OS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from casemate.model.domain import Domain
from casemate.model.uplinks import PASTA, static_of
from casemate.network.plan import has_uplink, has_wire, wanted_uplink
from casemate.network.uplink import GATEWAY, GATEWAY6
from casemate.wire.errors import ValueInvalidError
from casemate.wire.firewall import Rule, format_rule
from casemate.wire.nft import DNS

FIREWALL = "/qubes-firewall/"
UPLINK_KEY = "/qubes-uplink"
"""In a net qube with a card, in place of addresses: ``dhcp``, or address/length, router or ``-``, name servers. One key
of ours, so that the agent never sees half of a change."""
_MASK = "255.255.255.255"

Rules = Callable[[Domain], "Sequence[Rule] | None"]
"""A qube's firewall; None when it cannot be read."""


def network_keys(domain: Domain, rules: Rules) -> dict[str, str]:
    """Keys and values: addresses of a qube with a wire; of a net qube also the qubes it serves, and their rules."""
    keys: dict[str, str | None] = {}
    uplink_by = wanted_uplink(domain)
    if uplink_by is not None and uplink_by.kind != PASTA:
        keys |= {"/qubes-mac": domain.mac.lower(), UPLINK_KEY: _lan(domain)}
    elif has_wire(domain):
        uplink = has_uplink(domain)
        keys |= {
            "/qubes-mac": domain.mac.lower(),
            "/qubes-ip": domain.ip if uplink else domain.visible_ip,
            "/qubes-netmask": _MASK if uplink else domain.visible_netmask,
            "/qubes-gateway": GATEWAY if uplink else domain.visible_gateway,
            "/qubes-ip6": domain.ip6 if uplink else domain.visible_ip6,
            "/qubes-gateway6": (GATEWAY6 if domain.ip6 else None) if uplink else domain.visible_gateway6,
            "/qubes-primary-dns": DNS[0],
            "/qubes-secondary-dns": DNS[1],
        }
    if domain.provides_network:
        keys |= {
            "/qubes-netvm-network": domain.gateway,
            "/qubes-netvm-gateway": domain.gateway,
            "/qubes-netvm-gateway6": domain.gateway6,
            "/qubes-netvm-netmask": _MASK,
            "/qubes-netvm-primary-dns": DNS[0],
            "/qubes-netvm-secondary-dns": DNS[1],
        }
        clients = domain.connected_vms()
        keys["/connected-ips"] = " ".join(client.ip for client in clients if client.ip)
        keys["/connected-ips6"] = " ".join(client.ip6 for client in clients if client.ip6)
        for client in clients:
            keys |= _firewall(client, rules(client))
    return {key: value for key, value in keys.items() if value is not None}


def _lan(domain: Domain) -> str | None:
    try:
        static = static_of(domain.features)
    except ValueInvalidError:
        return None  # nothing passes then: see plan.py
    return "dhcp" if static is None else str(static)


def _firewall(client: Domain, rules: Sequence[Rule] | None) -> dict[str, str]:
    """The rules of one qube. What no rule matches is dropped; so is all, when the rules cannot be read."""
    keys = {}
    for address, foreign in ((client.ip, "dst6"), (client.ip6, "dst4")):
        if address is None:
            continue
        base = f"{FIREWALL}{address}"
        keys[f"{base}/policy"] = "drop"
        mine = [rule for rule in rules or () if foreign not in rule]
        keys |= {f"{base}/{number:04}": _text(rule) for number, rule in enumerate(mine)}
    return keys


def _text(rule: Rule) -> str:
    """A rule for the net qube: without its comment, which is none of its business."""
    return format_rule({key: value for key, value in rule.items() if key != "comment"})


def commits(changed: Sequence[str]) -> list[str]:
    """The keys to write, empty, after these have changed: each tells the net qube that one qube's rules are whole."""
    found = {FIREWALL + key[len(FIREWALL) :].partition("/")[0] for key in changed if key.startswith(FIREWALL)}
    return sorted(found)
