"""The XML of a QEMU machine: few devices, all virtio, nothing that a guest does not need (pure).

Ids such as D4 are rows of the hardening table in docs/explanation/security.md.
"""

from __future__ import annotations

import json
from pathlib import Path

from lxml import etree

from casemate.host import guest_memory
from casemate.host.domain_xml import QEMU, child, endings, head, to_text
from casemate.host.domain_xml_nic import nic_element
from casemate.host.hypervisor import Disk, GuestMemory, MachineSpec

CHANNEL = "org.casemate.channel.0"

KERNEL_OPTIONS = "console=ttyS0 quiet panic=1 cryptomgr.notests random.trust_cpu=on"
"""For every guest: complain on the console and end; no self-tests of crypto (half a second when emulated)."""

HOTPLUG_PORTS = 4
"""Limit of the Admin API (devices): devices attached to a running qube. Each port costs an emulated guest 35 ms of its
start."""

USB_PORTS = 4
"""How many USB devices a running machine can be given at a time."""

MEMORY_ID = "casemate.ram"
"""Name of a memory that is a file; a saved state knows its memory by this name."""

_MODERN = "virtio-non-transitional"
_FIRST_SLOT = 2


class _Slots:
    """Hands out slots of the root bus in order. Fixed devices sit there directly: a port of its own for each would cost
    an emulated guest 35 ms of its start."""

    def __init__(self) -> None:
        self._next = _FIRST_SLOT

    def take(self) -> int:
        """The number of the next slot."""
        self._next += 1
        return self._next - 1

    def put(self, element: etree._Element) -> None:
        """Give a device the next slot."""
        child(element, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{self.take():02x}", function="0x0")


def qemu_xml(spec: MachineSpec, prefix: str, launcher: Path | None = None) -> str:
    """The definition of a machine. ``launcher`` starts QEMU for machines whose memory is a file of its own."""
    kvm = spec.acceleration == "kvm"
    domain = head(spec, prefix, "kvm" if kvm else "qemu")
    _boot(domain, spec)
    _processor(domain, kvm)
    clock = child(domain, "clock", offset="utc")
    child(clock, "timer", name="hpet", present="no")
    endings(domain)
    devices = child(domain, "devices")
    if spec.memory is not None:
        child(devices, "emulator", str(launcher))
    slots = _Slots()
    # D2, D3: libvirt adds a USB controller and a balloon unless it is told that there are none.
    if spec.usb:
        slots.put(child(devices, "controller", type="usb", index=0, model="qemu-xhci", ports=USB_PORTS))
    else:
        child(devices, "controller", type="usb", model="none")
    child(devices, "memballoon", model="none")
    child(devices, "audio", id="1", type="none")
    slots.put(child(devices, "controller", type="virtio-serial", index=0, ports=4, model=_MODERN))
    for disk in spec.disks:
        slots.put(_disk(devices, disk))
    plugged = [nic for nic in spec.nics if not nic.fixed]
    _ports(devices, slots, HOTPLUG_PORTS + len(plugged))
    _sockets(devices, spec)
    slots.put(_random(devices))
    for nic in spec.nics:
        if nic.fixed:
            slots.put(nic_element(devices, nic))
    for port, nic in enumerate(plugged, HOTPLUG_PORTS + 1):
        address = {"domain": "0x0000", "bus": f"0x{port:02x}", "slot": "0x00", "function": "0x0"}
        child(nic_element(devices, nic), "address", type="pci", **address)
    if spec.uid is not None and spec.gid is not None:
        # V2: a user of its own. No relabelling: shared templates must never change hands (host/qemu_access.py).
        label = child(domain, "seclabel", type="static", model="dac", relabel="no")
        child(label, "label", f"+{spec.uid}:+{spec.gid}")
    if spec.memory is not None:
        _memory_file(domain, spec, spec.memory)
    return to_text(domain)


def _memory_file(domain: etree._Element, spec: MachineSpec, memory: GuestMemory) -> None:
    """Memory that is a file (guest_memory.py): mapped shared where the file is this machine's own, else private.

    Not by libvirt's own ``memoryBacking``, which always has QEMU make the file. The memory that libvirt asks for is
    there too; nothing uses it, so it takes none of the host's.
    """
    backend = {
        "qom-type": "memory-backend-file", "id": MEMORY_ID, "size": spec.memory_mib << 20,
        "mem-path": guest_memory.PATH, "share": memory.image is None or memory.copied, "merge": False, "dump": False,
    }  # fmt: skip
    words = ["-object", json.dumps(backend), "-machine", f"memory-backend={MEMORY_ID}"]
    if memory.image is not None:
        words += ["-incoming", "defer"]
    commandline = etree.SubElement(domain, f"{{{QEMU}}}commandline")
    for word in words:
        etree.SubElement(commandline, f"{{{QEMU}}}arg", value=word)
    etree.SubElement(commandline, f"{{{QEMU}}}env", name=guest_memory.VARIABLE, value=str(guest_memory.socket_of(spec)))


def _boot(domain: etree._Element, spec: MachineSpec) -> None:
    system = child(domain, "os")
    child(system, "type", "hvm", arch="x86_64", machine="q35")
    child(system, "kernel", str(spec.kernel))
    child(system, "initrd", str(spec.initrd))
    child(system, "cmdline", f"{KERNEL_OPTIONS} {spec.cmdline}".rstrip())


def _processor(domain: etree._Element, kvm: bool) -> None:
    """D5, D8: what the host has, with its mitigations visible; without nested virtualisation (H3) and counters."""
    features = child(domain, "features")
    child(features, "acpi")
    child(features, "apic")
    child(features, "vmport", state="off")
    child(features, "smm", state="off")
    if kvm:
        child(features, "pmu", state="off")
        cpu = child(domain, "cpu", mode="host-passthrough", check="none", migratable="off")
        child(cpu, "feature", policy="disable", name="vmx")
    else:
        cpu = child(domain, "cpu", mode="maximum", check="none", migratable="off")
        # Emulated five-level page tables cost time; and libvirt's CPU says 48 address bits with them, so that the
        # guest's kernel distrusts its own addresses and shows paths in /proc as "xxx" (fs/d_path.c).
        child(cpu, "feature", policy="disable", name="la57")
    child(cpu, "feature", policy="disable", name="svm")


def _disk(devices: etree._Element, disk: Disk) -> etree._Element:
    """S1-S3: format and all layers below are said, never probed; never shared; trimmed blocks are given back."""
    element = child(devices, "disk", type="file", device="disk", model=_MODERN)
    child(
        element, "driver", name="qemu", type=disk.format, cache="unsafe" if disk.scratch else "writeback",
        io="threads", discard="unmap", detect_zeroes="off",
    )  # fmt: skip
    child(element, "source", file=str(disk.path))
    layer = element
    for path, image_format in disk.backing:
        layer = child(layer, "backingStore", type="file")
        child(layer, "format", type=image_format)
        child(layer, "source", file=str(path))
    child(layer, "backingStore")
    child(element, "target", dev=disk.target, bus="virtio")
    if disk.readonly:
        child(element, "readonly")
    child(element, "serial", disk.serial)
    return element


def _ports(devices: etree._Element, slots: _Slots, count: int) -> None:
    """Ports for devices that come, or go, while the machine runs. All are functions of one slot of the root bus."""
    slot = slots.take()
    for number in range(count):
        port = child(devices, "controller", type="pci", index=number + 1, model="pcie-root-port")
        child(port, "model", name="pcie-root-port")
        child(port, "target", chassis=number + 1, port=f"0x{slot << 3 | number:x}")
        child(
            port, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function=f"0x{number}",
            multifunction="on" if number == 0 else None,
        )  # fmt: skip


def _sockets(devices: etree._Element, spec: MachineSpec) -> None:
    """The channel to the guest's agent and its console; sockets that libvirt makes, no terminal (D13)."""
    channel = child(devices, "channel", type="unix")
    child(channel, "source", mode="bind", path=str(spec.channel))
    child(channel, "target", type="virtio", name=CHANNEL)
    child(channel, "address", type="virtio-serial", controller=0, bus=0, port=1)
    serial = child(devices, "serial", type="unix")
    child(serial, "source", mode="bind", path=str(spec.console))
    child(child(serial, "target", type="isa-serial", port=0), "model", name="isa-serial")


def _random(devices: etree._Element) -> etree._Element:
    """D11: entropy from the host, as much as a guest can need."""
    rng = child(devices, "rng", model=_MODERN)
    child(rng, "rate", bytes=4096, period=1000)
    child(rng, "backend", "/dev/urandom", model="random")
    return rng
