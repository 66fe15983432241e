"""The XML of a network interface of a machine, and back (pure)."""

from __future__ import annotations

from lxml import etree

from casemate.host.domain_xml import child, to_text
from casemate.host.hypervisor import Nic

_MODERN = "virtio-non-transitional"


def nic_element(parent: etree._Element, nic: Nic) -> etree._Element:
    """A virtio interface whose tap is there already; libvirt opens it and changes nothing of it.

    QEMU serves it itself (``driver name='qemu'``), not the kernel's vhost: one thing less that a guest can reach. No
    boot ROM: nobody boots from the network, and a guest's firmware need not run it.
    """
    element = child(parent, "interface", type="ethernet")
    child(element, "mac", address=nic.mac)
    child(element, "target", dev=nic.tap, managed="no")
    child(element, "model", type=_MODERN)
    child(element, "driver", name="qemu")
    child(element, "rom", enabled="no")
    return element


def nic_xml(nic: Nic) -> str:
    """An interface as libvirt attaches it to a running machine."""
    return to_text(nic_element(etree.Element("devices"), nic))


def nics_of(description: str) -> list[Nic]:
    """The interfaces that a machine has."""
    found = []
    for element in etree.fromstring(description).iterfind("devices/interface"):
        target, mac = element.find("target"), element.find("mac")
        if target is not None and mac is not None:
            found.append(Nic(target.get("dev", ""), mac.get("address", "")))
    return found


def element_of_nic(description: str, tap: str) -> str | None:
    """The XML of an interface that a machine has, to be detached; None when it has none on this tap."""
    for element in etree.fromstring(description).iterfind("devices/interface"):
        target = element.find("target")
        if target is not None and target.get("dev") == tap:
            return etree.tostring(element, encoding="unicode")
    return None
