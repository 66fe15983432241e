"""Gives disks of the host to machines, whatever bus they appear on there. Shared by the classes that do that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from uuid import UUID

from casemate.devices.device_class import Attachment, HostDevice, Machine, Opening
from casemate.host import qemu_access
from casemate.host.hypervisor import HostDisk
from casemate.host.plugins import Option
from casemate.model.devices import ANY
from casemate.wire.errors import DeviceBusyError, ValueInvalidError

_TARGET = re.compile(r"(xv|v|s)d[a-z]")
_YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def _check_yes(text: str) -> None:
    if text.lower() not in _YES:
        raise ValueInvalidError("read-only is yes or no")


def _check_target(text: str) -> None:
    if not _TARGET.fullmatch(text):
        raise ValueInvalidError("frontend-dev is the name of a disk, such as vdi")


def _check_type(text: str) -> None:
    if text not in ("disk", "cdrom"):
        raise ValueInvalidError("devtype is disk or cdrom")


READ_ONLY = Option("read-only", "``yes``: the qube cannot write. Default: as the device is.", _check_yes)
FRONTEND_DEV = Option(
    "frontend-dev", "Name of the disk in the qube, such as ``vdi``. Default: a free one.", _check_target
)
DEVTYPE = Option("devtype", "``cdrom``: a disc that cannot be written; else ``disk``.", _check_type, "disk")


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """How a disk is attached. ``readonly`` None: as the device is."""

    readonly: bool | None = None
    target: str | None = None
    cdrom: bool = False

    @classmethod
    def of(cls, given: Mapping[str, str]) -> DiskOptions:
        """From options that were checked one by one; ValueInvalidError when they contradict each other."""
        word, cdrom = given.get("read-only"), given.get("devtype") == "cdrom"
        readonly = None if word is None else _YES[word.lower()]
        if cdrom and readonly is False:
            raise ValueInvalidError("a CD-ROM cannot be written")
        return cls(True if cdrom else readonly, given.get("frontend-dev"), cdrom)


class Disks:
    """Disks on one bus of machines: ``virtio`` or ``usb``. ``first`` is the first letter of names to choose from."""

    def __init__(self, opening: Opening, bus: str, prefix: str, first: str) -> None:
        self._kernel = opening.kernel
        self._hypervisor = opening.hypervisor
        self._reserved = opening.reserved
        self._bus = bus
        self._names = [prefix + letter for letter in ascii_lowercase[ascii_lowercase.index(first) :]]

    async def attached(self, devices: Iterable[HostDevice]) -> Mapping[UUID, Sequence[Attachment]]:
        """What machines have on this bus; ``devices`` are those of the class, by which a disk is recognized."""
        known = {device.node: device for device in devices if device.node}
        found = {}
        for uuid, disks in (await self._hypervisor.host_disks()).items():
            found[uuid] = [self._attachment(disk, known) for disk in disks if disk.bus == self._bus]
        return found

    @staticmethod
    def _attachment(disk: HostDisk, known: Mapping[str, HostDevice]) -> Attachment:
        name = disk.node.name
        device = known.get(name)
        options = {
            "devtype": "cdrom" if disk.cdrom else "disk",
            "frontend-dev": disk.target,
            "read-only": "yes" if disk.readonly else "no",
        }
        # A device that has gone while a machine has it is known by the name of its disk alone.
        port, ident = (device.port, device.ident) if device is not None else (name, ANY)
        return Attachment(port, ident, resource(name), options, disk)

    async def attach(
        self, machine: Machine, device: HostDevice, options: DiskOptions, before: Callable[[], None]
    ) -> None:
        """Lend the node to the machine's user and plug the disk in; see Provider.attach."""
        if device.readonly and options.readonly is False:
            raise ValueInvalidError(f"{device.port} can only be read")
        readonly = device.readonly if options.readonly is None else options.readonly
        node = self._kernel.block_node(device.node)
        disks = (await self._hypervisor.host_disks()).get(machine.uuid, ())
        taken = {disk.target for disk in disks} | self._reserved
        target = options.target or next((name for name in self._names if name not in taken), "")
        if not target:
            raise DeviceBusyError(f"{machine.name} has no name left for another {self._bus} disk")
        if target in taken:
            raise ValueInvalidError(f"{machine.name} has a disk {target} already")
        before()
        if machine.uid is not None:
            qemu_access.lend(node, machine.uid, readonly)
        try:
            disk = HostDisk(node, target, readonly, options.cdrom, self._bus)
            await self._hypervisor.attach_disk(machine.uuid, disk)
        except BaseException:
            self._take_back(machine, device.node)
            raise

    async def detach(self, machine: Machine, attachment: Attachment) -> None:
        """Unplug the disk, then take the node back from the machine's user."""
        disk = attachment.handle
        assert isinstance(disk, HostDisk)
        await self._hypervisor.detach_disk(machine.uuid, disk.target)
        self._take_back(machine, disk.node.name)

    def release(self, machine: Machine) -> None:
        """Take back what the machine's user was lent: the machine has ended."""
        # Of all nodes that the kernel has, not of the devices that can be given now: a loop device without its file is
        # none of those, but its node stays, and will be another file's.
        for directory in self._kernel.directories("class/block"):
            self._take_back(machine, directory.name)

    def _take_back(self, machine: Machine, name: str) -> None:
        if machine.uid is not None:
            qemu_access.take_back(self._kernel.path(name), machine.uid)


def resource(name: str) -> str:
    """A disk or partition of the host as something that one machine can have, whatever class it is given as."""
    return f"disk:{name}"
