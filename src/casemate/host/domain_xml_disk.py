"""The XML of a block device of the host as a disk of a machine, and back (pure)."""

from __future__ import annotations

from pathlib import Path

from lxml import etree

from casemate.host.domain_xml import child, to_text
from casemate.host.hypervisor import HostDisk

_MODERN = "virtio-non-transitional"
_CDROM, _DISK = "ua-cdrom-", "ua-disk-"
"""Names of devices that libvirt keeps for us; they tell what was asked for."""


def disk_xml(disk: HostDisk) -> str:
    """A disk as libvirt attaches it: raw whatever it holds, straight to the device, given up when the guest says so."""
    element = etree.Element("disk", type="block", device="disk")
    if disk.bus == "virtio":
        element.set("model", _MODERN)
    child(element, "driver", name="qemu", type="raw", cache="none", io="native", discard="unmap", detect_zeroes="off")
    child(element, "source", dev=str(disk.node))
    child(element, "backingStore")
    child(element, "target", dev=disk.target, bus=disk.bus)
    if disk.readonly:
        child(element, "readonly")
    child(element, "serial", disk.node.name[-20:])  # virtio has room for 20 bytes
    child(element, "alias", name=(_CDROM if disk.cdrom else _DISK) + disk.target)
    return to_text(element)


def disks_of(description: str) -> list[HostDisk]:
    """The block devices that a machine has. Its own volumes are files, so every block device was attached."""
    found = []
    for element in etree.fromstring(description).iterfind("devices/disk[@type='block']"):
        source, target, alias = (element.find(tag) for tag in ("source", "target", "alias"))
        if source is None or target is None or not source.get("dev"):
            continue
        found.append(
            HostDisk(
                node=Path(source.get("dev", "")),
                target=target.get("dev", ""),
                readonly=element.find("readonly") is not None,
                cdrom=alias is not None and alias.get("name", "").startswith(_CDROM),
                bus=target.get("bus", "virtio"),
            )
        )
    return found


def element_of(description: str, target: str) -> str | None:
    """The XML of an attached block device, to be detached; None when the machine has none of that name."""
    for element in etree.fromstring(description).iterfind("devices/disk[@type='block']"):
        name = element.find("target")
        if name is not None and name.get("dev") == target:
            return etree.tostring(element, encoding="unicode")
    return None


def has_usb(description: str) -> bool:
    """Whether a machine has a USB controller."""
    found = etree.fromstring(description).iterfind("devices/controller[@type='usb']")
    return any(controller.get("model") != "none" for controller in found)
