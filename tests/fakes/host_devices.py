"""Devices of a host as files describe them, and the disks that machines were given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from casemate.host.hypervisor import HostDisk
from casemate.host.kernel_devices import KernelDevices
from casemate.wire.errors import (
    DeviceBusyError,
)


class FakeDisks:
    """The part of a hypervisor that devices need. ``stuck`` machines do not let go of anything."""

    def __init__(self) -> None:
        self.disks: dict[UUID, list[HostDisk]] = {}
        self.stuck: set[UUID] = set()

    async def host_disks(self) -> Mapping[UUID, list[HostDisk]]:
        return self.disks

    async def attach_disk(self, uuid: UUID, disk: HostDisk) -> None:
        await asyncio.sleep(0)
        self.disks.setdefault(uuid, []).append(disk)

    async def detach_disk(self, uuid: UUID, target: str) -> None:
        await asyncio.sleep(0)
        if uuid in self.stuck:
            raise DeviceBusyError(f"The guest does not let go of its disk {target}")
        self.disks[uuid] = [disk for disk in self.disks.get(uuid, []) if disk.target != target]


class FakeKernel(KernelDevices):
    """The host's devices as files say them; their nodes are not opened, as there are none."""

    def block_node(self, name: str) -> Path:
        return self.path(name)


def add_block(root: Path, name: str, size: int = 8, **texts: str) -> Path:
    """Describe a block device below a fake /sys: ``size`` in sectors; texts such as ``loop__backing_file``."""
    place = root / "block" / name
    place.mkdir(parents=True)
    for key, text in {"size": str(size), "ro": "0", "dev": "7:0", **texts}.items():
        path = place / key.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return place


def add_disk_with_parts(root: Path, name: str, major: int) -> None:
    """Describe a disk with two partitions below a fake /sys."""
    place = add_block(root, name, dev=f"{major}:0", device__serial="S 1/2", device__model="Stick")
    for number in (1, 2):
        part = place / f"{name}{number}"
        part.mkdir()
        for key, text in {"partition": str(number), "size": "4", "ro": "0", "dev": f"{major}:{number}"}.items():
            (part / key).write_text(text)


def add_usb_stick(root: Path, port: str, disk: str, size: int = 8) -> Path:
    """Describe a USB storage device below a fake /sys, and its disk: both classes list it. ``size`` in sectors."""
    place = root / "bus/usb/devices" / port
    interface = place / f"{port}:1.0"
    inner = interface / "host0/target0:0:0/0:0:0:0/block" / disk
    inner.mkdir(parents=True)
    texts = {
        place: {"idVendor": "1234", "idProduct": "abcd", "bDeviceClass": "00", "serial": "S1", "product": "Stick"},
        interface: {"bInterfaceClass": "08", "bInterfaceSubClass": "06", "bInterfaceProtocol": "50"},
        inner: {"size": str(size), "ro": "0", "dev": "8:0"},
    }
    for directory, files in texts.items():
        for key, text in files.items():
            (directory / key).write_text(text + "\n")
    add_block(root, disk, size, dev="8:0")
    return place


def add_pci(root: Path, port: str) -> Path:
    """Describe a PCI function below a fake /sys."""
    place = root / "bus/pci/devices" / port
    place.mkdir(parents=True)
    for key, text in {"vendor": "0x8086", "device": "0x1234", "class": "0x020000"}.items():
        (place / key).write_text(text + "\n")
    return place
