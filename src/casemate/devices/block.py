"""Block devices: disks, partitions and loop devices that the host does not use itself. They become virtio disks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from casemate.devices.device_class import Attachment, DeviceClass, HostDevice, Machine, Opening
from casemate.devices.disks import DEVTYPE, FRONTEND_DEV, READ_ONLY, DiskOptions, Disks, resource

NAME = "block"
_SECTOR = 512
"""Bytes of a sector in /sys, whatever the device's own are (Documentation/block/stat.rst)."""
_NOT_OFFERED = ("ram", "zram", "fd")
_NOT_IDENT = re.compile(r"[^A-Za-z0-9_.-]")


class BlockDevices:
    """See ``device_class.Provider``."""

    def __init__(self, opening: Opening) -> None:
        self._kernel = opening.kernel
        self._disks = Disks(opening, "virtio", "vd", "d")  # vda to vdc are the qube's own volumes

    # -- what there is

    def list(self) -> list[HostDevice]:
        """The block devices that the host does not use itself, by port."""
        return sorted(self._offered(), key=lambda device: device.port)

    def _offered(self) -> Iterator[HostDevice]:
        used = self._used()
        for disk in self._kernel.directories("block"):
            if disk.name.startswith(_NOT_OFFERED) or "!" in disk.name:
                continue
            parts = [part.parent for part in disk.glob("*/partition")]
            # A disk with a partition in use is in use, but its other partitions are free.
            if not any(self._is_used(one, used) for one in (disk, *parts)):
                yield from self._described(disk, "")
            for part in parts:
                if not self._is_used(part, used) and not self._is_used(disk, used):
                    yield from self._described(part, disk.name)

    def _described(self, directory: Path, whole: str) -> Iterator[HostDevice]:
        text = self._kernel.text
        size = text(directory, "size")
        sectors = int(size) if size.isascii() and size.isdecimal() else 0
        loop = text(directory / "loop", "backing_file")
        if sectors == 0 or (directory.name.startswith("loop") and not whole and not loop):
            return  # an empty card reader; a loop device without a file
        disk = self._kernel.sys / "block" / whole if whole else directory
        number = text(directory, "partition") if whole else ""
        model = loop or " ".join(filter(None, (text(disk / "device", n) for n in ("vendor", "model"))))
        serial = text(disk / "device", "serial") or text(disk / "device", "wwid") or text(disk, "wwid")
        if loop:
            ident = "file-" + hashlib.sha256(loop.encode()).hexdigest()[:16]
        else:
            ident = _NOT_IDENT.sub("-", serial)[:100] or f"{disk.name}-{sectors}"
        yield HostDevice(
            NAME, directory.name, f"{ident}:p{number}" if whole else ident, name=model or disk.name, serial=serial,
            interfaces="b******", size=sectors * _SECTOR, readonly=text(directory, "ro") == "1", whole=whole,
            file=_identity(loop) if loop else "", node=directory.name,
        )  # fmt: skip

    def _is_used(self, directory: Path, used: frozenset[str]) -> bool:
        """Whether the host uses a device: another device lies over it, or it is mounted or swapped to."""
        try:
            held = any((directory / "holders").iterdir())
        except OSError:
            held = False
        return held or directory.name in used or self._kernel.text(directory, "dev") in used

    def _used(self) -> frozenset[str]:
        """Numbers (``MAJOR:MINOR``) and names of the block devices that are mounted or swapped to."""
        found: set[str] = set()
        for process in ("self", "1"):
            for line in self._kernel.lines(f"{process}/mountinfo"):
                before, _, after = line.partition(" - ")
                source = after.split(" ")[1:2]
                found.update(before.split(" ")[2:3])
                # Some file systems (btrfs) have numbers of their own; their source is the device.
                found.update(_node_name(name) for name in source if name.startswith("/dev/"))
        found.update(_node_name(line.split()[0]) for line in self._kernel.lines("swaps")[1:])
        return frozenset(found)

    def resources(self, device: HostDevice) -> frozenset[str]:
        """What shares sectors with a device: itself, the disk that it is a part of, the parts of it, and other loop
        devices over the same file unless all can only read."""
        others = self.list()
        parts = {one.port for one in others if one.whole == device.port}
        twins = {
            one.port
            for one in others
            if device.file and one.file == device.file and not (one.readonly and device.readonly)
        }
        ports = {device.port, *parts, *twins, *({device.whole} if device.whole else ())}
        return frozenset(resource(port) for port in ports)

    # -- who has it

    async def attached(self) -> Mapping[UUID, Sequence[Attachment]]:
        """What machines have now."""
        return await self._disks.attached(self.list())

    async def attach(
        self, machine: Machine, device: HostDevice, options: Mapping[str, str], before: Callable[[], None]
    ) -> None:
        """Plug the device in as a virtio disk."""
        await self._disks.attach(machine, device, DiskOptions.of(options), before)

    async def detach(self, machine: Machine, attachment: Attachment) -> None:
        """Unplug it."""
        await self._disks.detach(machine, attachment)

    def release(self, machine: Machine) -> None:
        """Take back what the machine's user was lent."""
        self._disks.release(machine)


def _node_name(node: str) -> str:
    try:
        return Path(node).resolve().name
    except OSError:
        return Path(node).name


def _identity(path: str) -> str:
    """A file by device and number, so that links to it are it; by its path where it has been removed."""
    try:
        status = Path(path).stat()
    except OSError:
        return path
    return f"{status.st_dev}:{status.st_ino}"


DEVICE_CLASS = DeviceClass(
    name=NAME,
    doc="Disks, partitions and loop devices of the host. A qube gets them as virtio disks.",
    open=BlockDevices,
    subsystems=("block",),
    options=(READ_ONLY, FRONTEND_DEV, DEVTYPE),
)
