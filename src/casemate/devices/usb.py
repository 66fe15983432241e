"""USB devices of the host. A storage device becomes a USB stick on the qube's emulated controller; others are listed.

The qube gets an emulated stick over the device's disk, not the device itself. So it can neither send the device
commands that change its firmware nor leave anything in it but sectors, and the host's own USB stack stays in between.
Passing a whole device through (QEMU's usb-host) would give that away, and is not done.

::

    host: 1-1 (interface class 08) ── block/sdX ──▶ usb-storage ── qemu-xhci ──▶ guest: another USB stick
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from casemate.devices.device_class import Attachment, DeviceClass, HostDevice, Machine, Opening
from casemate.devices.disks import READ_ONLY, DiskOptions, Disks, resource
from casemate.wire.errors import NotImplementedHereError

NAME = "usb"
_SECTOR = 512


class UsbDevices:
    """See ``device_class.Provider``."""

    def __init__(self, opening: Opening) -> None:
        self._kernel = opening.kernel
        self._disks = Disks(opening, "usb", "sd", "a")

    def list(self) -> list[HostDevice]:
        """All USB devices, hubs too, by port."""
        return sorted(self._described(), key=lambda device: device.port)

    def _described(self) -> Iterator[HostDevice]:
        text = self._kernel.text
        for directory in self._kernel.directories("bus/usb/devices"):
            if ":" in directory.name or not (directory / "idVendor").exists():
                continue  # an interface, whose device is listed
            vendor, product, kind = (text(directory, name) for name in ("idVendor", "idProduct", "bDeviceClass"))
            codes = "".join(
                "u" + "".join(text(one, f"bInterface{part}") for part in ("Class", "SubClass", "Protocol"))
                for one in sorted(directory.glob(f"{directory.name}:*"))
            )
            disk = _disk(directory)
            sectors = text(disk, "size") if disk is not None else ""
            yield HostDevice(
                NAME, directory.name, f"{vendor}:{product}:{text(directory, 'serial')}:u{kind}", vendor, product,
                text(directory, "product"), text(directory, "serial"), codes or f"u{kind:0<6}",
                size=int(sectors) * _SECTOR if sectors.isascii() and sectors.isdecimal() else None,
                readonly=disk is not None and text(disk, "ro") == "1",
                node=disk.name if disk is not None else "",
            )  # fmt: skip

    def resources(self, device: HostDevice) -> frozenset[str]:
        """The device's disk and its partitions, which the class of block devices lists too."""
        if not device.node:
            return frozenset({f"usb:{device.port}"})
        parts = self._kernel.directories(f"block/{device.node}")
        names = {device.node, *(part.name for part in parts if (part / "partition").exists())}
        return frozenset(resource(name) for name in names)

    async def attached(self) -> Mapping[UUID, Sequence[Attachment]]:
        """What machines have now."""
        return await self._disks.attached(self.list())

    async def attach(
        self, machine: Machine, device: HostDevice, options: Mapping[str, str], before: Callable[[], None]
    ) -> None:
        """Plug the device's disk in as a USB stick. The machine must have a USB controller from its start."""
        if not device.node or device.size is None:
            raise NotImplementedHereError(
                f"usb device {device.port} is no storage device with one disk; only such are given to qubes here"
            )
        await self._disks.attach(machine, device, DiskOptions.of(options), before)

    async def detach(self, machine: Machine, attachment: Attachment) -> None:
        """Unplug it."""
        await self._disks.detach(machine, attachment)

    def release(self, machine: Machine) -> None:
        """Take back what the machine's user was lent."""
        self._disks.release(machine)


def _disk(directory: Path) -> Path | None:
    """The one disk of a USB storage device; None for other devices, and for readers with several slots."""
    disks = list(directory.glob(f"{directory.name}:*/host*/target*/*/block/*"))
    return disks[0] if len(disks) == 1 else None


DEVICE_CLASS = DeviceClass(
    name=NAME,
    doc="USB devices of the host. A storage device is given to a qube as a USB stick over its disk; others are listed.",
    open=UsbDevices,
    subsystems=("usb",),
    options=(READ_ONLY,),
    controller="usb",
)
