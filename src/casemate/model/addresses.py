"""Network addresses of qubes: computed from their numbers, so that nobody has to hand them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.model.domain import Domain

DNS = ("10.139.1.1", "10.139.1.2")
NETMASK = "255.255.255.255"


def _numbers(domain: Domain) -> tuple[int, int]:
    """The second octet (137, for disposables 138) and the number of the qube in that network."""
    dispid = domain.dispid
    return (138, dispid) if dispid is not None else (137, domain.qid)


def ip(domain: Domain) -> str:
    """The qube's address: 10.137.X.Y from its qid, 10.138.X.Y from the number of a disposable."""
    net, number = _numbers(domain)
    return f"10.{net}.{number >> 8 & 255}.{number & 255}"


def ip6(domain: Domain) -> str | None:
    """The qube's IPv6 address, where feature ``ipv6`` is on along the net qubes."""
    if not domain.features.check("ipv6", netvm=True):
        return None
    net, number = _numbers(domain)
    return f"fd09:24ef:4179::{0xA00 + net:x}:{number:x}"


def gateway(domain: Domain) -> str | None:
    """The address that this qube has for those it serves."""
    return domain.ip if domain.provides_network else None


def gateway6(domain: Domain) -> str | None:
    """The IPv6 address that this qube has for those it serves."""
    return domain.ip6 if domain.provides_network else None


def visible_ip(domain: Domain) -> str | None:
    """The address that the qube itself sees."""
    return domain.features.check("net.fake-ip", template=True) or domain.ip


def visible_gateway(domain: Domain) -> str | None:
    """The gateway that the qube itself sees."""
    if domain.netvm is None:
        return None
    return domain.features.check("net.fake-gateway", template=True) or domain.netvm.gateway


def visible_gateway6(domain: Domain) -> str | None:
    """The IPv6 gateway that the qube itself sees."""
    return None if domain.netvm is None or domain.ip6 is None else domain.netvm.gateway6


def visible_netmask(domain: Domain) -> str | None:
    """The netmask that the qube itself sees."""
    if domain.netvm is None:
        return None
    return domain.features.check("net.fake-netmask", template=True) or NETMASK


def dns(domain: Domain) -> str | None:
    """The name servers of a qube with a network."""
    return None if domain.netvm is None else " ".join(DNS)
