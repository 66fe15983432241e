"""Network addresses of qubes: computed from their numbers, so that nobody has to hand them out.

::

    10.137.X.Y   a qube, X.Y from its qid            fd09:24ef:4179::a89:N   the same with feature ipv6
    10.138.X.Y   a disposable, X.Y from its number   fd09:24ef:4179::a8a:N

A net qube is the gateway of the qubes that it serves. What a qube itself sees can be made to differ from these
addresses by the features ``net.fake-ip``, ``net.fake-gateway`` and ``net.fake-netmask``. The plan is that of Qubes OS.
"""

from __future__ import annotations

from collections.abc import Callable

from casemate.model.defaults import Computed
from casemate.model.features import Features
from casemate.model.kinds import OptionalText, Text
from casemate.model.properties import Property, Role, Setting
from casemate.model.qube_settings import QubeSettings
from casemate.model.uplinks import PASTA, mac_of, uplink_of

DNS = ("10.139.1.1", "10.139.1.2")
NETMASK = "255.255.255.255"
COMMON_MAC = "00:16:3e:5e:6c:00"

_MAC = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"
_IPV4 = r"(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}"
_IPV6 = r"[0-9a-f:]{2,39}"


def _numbers(qube: NetworkSettings) -> tuple[int, int]:
    """The second octet and the number of the qube in that network."""
    dispid = qube.dispid
    return (138, dispid) if dispid is not None else (137, qube.qid)


def _mac(qube: NetworkSettings) -> str:
    uplink = uplink_of(Features(qube))
    # Between qubes a wire has two ends, so all may have the same; on a network outside there are others.
    return COMMON_MAC if uplink is None or uplink.kind == PASTA else mac_of(qube.uuid)


def _ip(qube: NetworkSettings) -> str:
    net, number = _numbers(qube)
    return f"10.{net}.{number >> 8 & 255}.{number & 255}"


def _ip6(qube: NetworkSettings) -> str | None:
    if not Features(qube).check("ipv6", netvm=True):
        return None
    net, number = _numbers(qube)
    return f"fd09:24ef:4179::{0xA00 + net:x}:{number:x}"


def _gateway(qube: NetworkSettings) -> str | None:
    return qube.ip if qube.provides_network else None


def _gateway6(qube: NetworkSettings) -> str | None:
    return qube.ip6 if qube.provides_network else None


def _visible_ip(qube: NetworkSettings) -> str | None:
    return Features(qube).check("net.fake-ip", template=True) or qube.ip


def _visible_gateway(qube: NetworkSettings) -> str | None:
    netvm = qube.provider()
    if netvm is None:
        return None
    return Features(qube).check("net.fake-gateway", template=True) or netvm.gateway


def _visible_gateway6(qube: NetworkSettings) -> str | None:
    netvm = qube.provider()
    return None if netvm is None or qube.ip6 is None else netvm.gateway6


def _visible_netmask(qube: NetworkSettings) -> str | None:
    if qube.provider() is None:
        return None
    return Features(qube).check("net.fake-netmask", template=True) or NETMASK


def _dns(qube: NetworkSettings) -> str | None:
    return None if qube.provider() is None else " ".join(DNS)


def _address(
    function: Callable[[NetworkSettings], str | None], rule: str, doc: str, kind: OptionalText | None = None
) -> Property[str | None]:
    """An address: with a ``kind`` it can be set and ``function`` is its default, else it always follows."""
    return Property(
        kind or OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY if kind is None else Setting.FREE,
        absent=None,
        default=Computed(function, rule),
        doc=doc,
    )


class NetworkSettings(QubeSettings):
    """The addresses of a qube, and what it sees of its network."""

    mac = Property(
        Text(_MAC, limit=17, what="MAC address", empty=False),
        role=Role.LOCAL,
        default=Computed(_mac, f"{COMMON_MAC}, or from the UUID where feature net.uplink names a card"),
        doc="MAC address that the qube sees.",
    )
    ip = _address(_ip, "from the qid", "IPv4 address.", OptionalText(_IPV4, limit=15, what="IPv4 address"))
    ip6 = _address(
        _ip6,
        "from the qid where feature ipv6 is on",
        "IPv6 address.",
        OptionalText(_IPV6, limit=39, what="IPv6 address"),
    )
    gateway = _address(_gateway, "the address, of a net qube", "Address for the qubes served.")
    gateway6 = _address(_gateway6, "the address, of a net qube", "IPv6 address for the qubes served.")
    visible_ip = _address(_visible_ip, "feature net.fake-ip, else the address", "IPv4 address as the qube sees it.")
    visible_ip6 = _address(lambda qube: qube.ip6, "the address", "IPv6 address as the qube sees it.")
    visible_gateway = _address(
        _visible_gateway, "feature net.fake-gateway, else the net qube's", "Gateway as the qube sees it."
    )
    visible_gateway6 = _address(_visible_gateway6, "the net qube's", "IPv6 gateway as the qube sees it.")
    visible_netmask = _address(
        _visible_netmask, "feature net.fake-netmask, else one host", "Netmask as the qube sees it."
    )
    dns = _address(_dns, "fixed, for a qube with a network", "Name servers.")

    def provider(self) -> NetworkSettings | None:
        """The net qube."""
        raise NotImplementedError
