"""Builds the parts of a libvirt domain's XML that all hypervisors share, as a tree and never from strings (pure)."""

from __future__ import annotations

from lxml import etree

from casemate.host.hypervisor import MachineSpec
from casemate.wire.errors import ValueInvalidError


def child(parent: etree._Element, tag: str, text: str | None = None, **attributes: str | int | None) -> etree._Element:
    """Append an element; attributes that are None are left out, ``_`` ends names that Python reserves."""
    element = etree.SubElement(parent, tag)
    try:
        for name, value in attributes.items():
            if value is not None:
                element.set(name.rstrip("_"), str(value))
        if text is not None:
            element.text = text
    except ValueError:
        raise ValueInvalidError(f"A value of <{tag}> of a machine has characters that XML cannot hold") from None
    return element


QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
"""Namespace of what is handed to QEMU as it is (libvirt's formatdomain, "QEMU command-line passthrough")."""


def head(spec: MachineSpec, prefix: str, kind: str) -> etree._Element:
    """The domain element with name, UUID, title, fixed memory and processors; ``kind`` is ``kvm`` or ``qemu``."""
    domain = etree.Element("domain", {"type": kind}, {"qemu": QEMU} if spec.memory is not None else None)
    child(domain, "name", prefix + spec.name)
    child(domain, "uuid", str(spec.uuid))
    child(domain, "title", spec.title)
    child(domain, "memory", str(spec.memory_mib), unit="MiB")
    child(domain, "currentMemory", str(spec.memory_mib), unit="MiB")
    child(child(domain, "memoryBacking"), "nosharepages")  # H4: no deduplication between machines
    child(domain, "vcpu", str(spec.vcpus), placement="static")
    return domain


def endings(domain: etree._Element) -> None:
    """D10: whatever the guest does, it ends; only the host starts it, with fresh volatile state. No sleep states."""
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        child(domain, event, "destroy")
    power = child(domain, "pm")
    child(power, "suspend-to-mem", enabled="no")
    child(power, "suspend-to-disk", enabled="no")


def to_text(domain: etree._Element) -> str:
    """The XML as libvirt takes it."""
    etree.indent(domain)
    return etree.tostring(domain, encoding="unicode") + "\n"
