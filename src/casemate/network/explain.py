"""Which rule decides whether a qube reaches a place, on the whole way, and what would change that (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from casemate.model.domain import Domain
from casemate.model.uplinks import PASTA, SHARED
from casemate.network.parts import NOWHERE, NOWHERE6, QUBES, QUBES6
from casemate.network.plan import wanted_uplink
from casemate.wire import dns
from casemate.wire.errors import ValueInvalidError, printable
from casemate.wire.firewall import Rule, format_rule, value
from casemate.wire.nft import DNS

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Place:
    """Where a qube wants to go: an address or a name, and perhaps a port. Without a port it is not known which."""

    host: str
    address: Address | None
    protocol: str
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol} to {host}" + (f" port {self.port}" if self.port is not None else "")


def parse_place(host: str, port: int | None, protocol: str) -> Place:
    """A place from what a person typed; ValueInvalidError."""
    protocol = value("proto", protocol)
    if port is not None and protocol == "icmp":
        raise ValueInvalidError("ICMP has no ports")
    if port is not None:
        value("dstports", str(port))
    try:
        address = ip_address(host)
    except ValueError:
        name = value("dsthost", host)
        return Place(name.rstrip(".").lower(), None, protocol, port)
    return Place(str(address), address, protocol, port)


@dataclass(frozen=True, slots=True)
class Step:
    """One place on the way where something is decided: who decides, whether it passes (None: it depends), why, and a
    command that would change it."""

    where: str
    passes: bool | None
    why: str
    change: str = ""


def explain(
    domain: Domain,
    place: Place,
    rules: Callable[[Domain], Sequence[Rule] | None],
    running: Callable[[str], bool],
    own: frozenset[str],
    now: float,
) -> list[Step]:
    """The way from a qube to a place, up to the first step that stops it.

    ``own`` are this host's addresses and networks. ``now`` is the time that rules with an end are measured by.
    """
    found: list[Step] = []
    for step in _steps(domain, place, rules, running, own, now):
        found.append(step)
        if step.passes is False:
            break
    return found


def _steps(
    domain: Domain,
    place: Place,
    rules: Callable[[Domain], Sequence[Rule] | None],
    running: Callable[[str], bool],
    own: frozenset[str],
    now: float,
) -> Iterator[Step]:
    yield from _never(place, own)
    at = domain
    while True:
        if place.address is not None and place.address.version == 6 and at.ip6 is None:
            yield Step(at.name, False, f"{at.name} has no IPv6", f"qvm-features {at.name} ipv6 1")
        netvm = at.netvm
        if netvm is None:
            yield _end(at, place)
            return
        yield _firewall(at, place, rules(at), now)
        if not running(netvm.name):
            yield Step(netvm.name, False, f"{netvm.name} is not running", f"qvm-start {netvm.name}")
        at = netvm


def _end(at: Domain, place: Place) -> Step:
    if not at.provides_network:
        return Step(at.name, False, f"{at.name} has no net qube", f"qvm-prefs {at.name} netvm NET-QUBE")
    uplink = wanted_uplink(at)
    if uplink is not None and uplink.kind == PASTA:
        return Step(at.name, True, "by its uplink, as a program of this host would")
    if uplink is not None and place.address is not None and place.address.version == 6:
        return Step(
            at.name, False, f"no IPv6 passes the card {uplink.card}", f"qvm-features {at.name} net.uplink pasta"
        )
    if uplink is not None:
        shared = ", which it shares with this host" if uplink.kind == SHARED else ""
        return Step(at.name, True, f"by the card {uplink.card}{shared}, as a machine of the network there would")
    return Step(at.name, False, f"{at.name} has no uplink", f"qvm-features {at.name} net.uplink pasta")


def _never(place: Place, own: frozenset[str]) -> Iterator[Step]:
    address = place.address
    if address is None or str(address) in DNS:
        return
    if any(address in ip_network(one) for one in own):
        yield Step("this host", False, "it is an address of this host, which no qube reaches")
    inner, nowhere = ((QUBES6,), NOWHERE6) if address.version == 6 else (QUBES, NOWHERE)
    if any(address in ip_network(one) for one in nowhere):
        yield Step("wire", False, "no qube may send there: the address is local to a machine or a wire")
    if any(address in ip_network(one) for one in inner):
        yield Step(
            "wire", False, "it is an address between qubes; only the net qube's custom-forward lets such through"
        )


def _firewall(at: Domain, place: Place, rules: Sequence[Rule] | None, now: float) -> Step:
    where = f"firewall of {at.name}"
    if rules is None:
        return Step(where, False, "its rules cannot be read, so everything is dropped", f"qvm-firewall {at.name} reset")
    wish = _wish(place)
    doubts: list[tuple[int, Rule]] = []
    for number, rule in enumerate(rules):
        fits = _fits(rule, place, now)
        if fits is None:
            doubts.append((number, rule))
        if fits:
            passes = rule["action"] == "accept"
            why = f"rule {number}: {printable(format_rule(rule), 120)}"
            change = f"qvm-firewall {at.name} add --before {number} {'drop' if passes else 'accept'} {wish}"
            return _decided(where, passes, why, change, doubts)
    change = f"qvm-firewall {at.name} add accept {wish}"
    return _decided(where, False, "no rule fits, so it is dropped", change, doubts)


def _decided(where: str, passes: bool, why: str, change: str, doubts: list[tuple[int, Rule]]) -> Step:
    """A verdict, in doubt when a rule that says the opposite comes before and may fit."""
    for number, rule in doubts:
        if (rule["action"] == "accept") is not passes:
            text = printable(format_rule(rule), 120)
            return Step(where, None, f"{why}; but rule {number} comes before and may fit: {text}", change)
    return Step(where, passes, why, change)


def _wish(place: Place) -> str:
    """A rule for exactly this place, as qvm-firewall takes it."""
    kind = "dsthost" if place.address is None else f"dst{place.address.version}"
    port = f" dstports={place.port}" if place.port is not None else ""
    return f"{kind}={place.host} proto={place.protocol}{port}"


def _fits(rule: Rule, place: Place, now: float) -> bool | None:
    """Whether a rule is about a place; None when that depends on what the place does not say."""
    if "expire" in rule and int(rule["expire"]) <= now:
        return False
    certain = True
    if rule.get("proto", place.protocol) != place.protocol:
        return False
    if rule.get("specialtarget") == "dns":
        if place.host not in DNS or place.protocol == "icmp":
            return False
        return None if place.port is None else place.port == 53
    if "dstports" in rule:
        low, _, high = rule["dstports"].partition("-")
        if place.port is None:
            certain = False
        elif not int(low) <= place.port <= int(high or low):
            return False
    if "icmptype" in rule:
        certain = False
    address = _fits_host(rule, place)
    if address is False:
        return False
    return True if address and certain else None


def _fits_host(rule: Rule, place: Place) -> bool | None:
    network = rule.get("dst4") or rule.get("dst6")
    if network is not None:
        if place.address is None:
            # A name may have any address; only a rule for all of them surely fits.
            return True if network.endswith("/0") else None
        other = 6 if "dst4" in rule else 4
        return place.address.version != other and place.address in ip_network(network)
    if "dsthost" in rule:
        # An address may be one of that name's; a name is this one or is not.
        return None if place.address is not None else dns.matches(rule["dsthost"], place.host)
    return True
