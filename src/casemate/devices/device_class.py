"""What a class of devices is: how it declares itself, and what the engine asks of it.

``DeviceClass`` is the declaration, one per module of this package. ``Provider`` is the class at work, opened once by
the daemon: it lists the host's devices, gives one to a machine and takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from casemate.host.hypervisor import Hypervisor
from casemate.host.kernel_devices import KernelDevices
from casemate.host.plugins import Option
from casemate.wire.errors import ValueInvalidError, printable

UNKNOWN_INTERFACE = "?******"
"""The code of an interface that says nothing: what upstream's clients write for a device of unknown kind."""


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One device of the host. ``port`` says where it is, ``ident`` what it is; ``interfaces`` are 7-character codes.

    ``size`` (bytes) and ``readonly`` are those of a device that is a disk; ``size`` is None for others. ``node`` is the
    name below /dev of the disk that a machine opens; empty where there is none.
    """

    klass: str
    port: str
    ident: str
    vendor: str = ""
    product: str = ""
    name: str = ""
    serial: str = ""
    interfaces: str = UNKNOWN_INTERFACE
    size: int | None = None
    readonly: bool = False
    whole: str = ""
    """The port of the disk that it is a partition of; empty for a whole device."""
    file: str = ""
    """Tells the file behind a loop device from every other file; empty for other devices."""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A device that a running machine has. ``options`` are as they would be given to attach it so.

    ``resource`` names what nobody else may have meanwhile, such as ``disk:sda``: devices of different classes can be
    the same thing. ``handle`` is how the provider finds it again in the machine.
    """

    port: str
    ident: str
    resource: str
    options: Mapping[str, str]
    handle: object = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The running machine that gets a device. ``uid`` is the user that its QEMU runs as (None: ours)."""

    name: str
    uuid: UUID
    uid: int | None


class Provider(Protocol):
    """A class of devices at work. What is attached is asked of the hypervisor each time: a crash loses nothing.

    The engine calls ``attach`` and ``detach`` one at a time and under the operation lock of the machine's qube, after
    it has made sure that no machine has any of the device's ``resources``.
    """

    def list(self) -> Sequence[HostDevice]:
        """The host's devices that could be given away, by port. Called in a thread too; reads the kernel's files."""

    def resources(self, device: HostDevice) -> frozenset[str]:
        """Everything that is shared with somebody who has one of these: the device, its parts, what it is part of."""

    async def attached(self) -> Mapping[UUID, Sequence[Attachment]]:
        """What machines have now, by their UUID."""

    async def attach(
        self, machine: Machine, device: HostDevice, options: Mapping[str, str], before: Callable[[], None]
    ) -> None:
        """Give a machine a device; ``options`` have been checked. ``before`` is called when nothing but the hypervisor
        can refuse any more. Undoes itself when it fails."""

    async def detach(self, machine: Machine, attachment: Attachment) -> None:
        """Take it back; DeviceBusyError when the guest does not let go of it."""

    def release(self, machine: Machine) -> None:
        """The machine has ended: take back every right to devices of the host that its user was lent. Idempotent."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a class gets to work with. ``reserved`` are names of disks (``vda`` ...) that every machine has."""

    kernel: KernelDevices
    hypervisor: Hypervisor
    reserved: frozenset[str]


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """A class of devices. Each module of this package has one, as ``DEVICE_CLASS``.

    ``subsystems`` are the kernel's (``SUBSYSTEM=`` of a uevent) whose events can change the list. ``refusal`` says why
    no device of the class can be given away here; empty where that is possible. ``controller`` is what a machine must
    have from its start so that it can get a device later, ``usb`` or nothing.
    """

    name: str
    doc: str
    open: Callable[[Opening], Provider]
    subsystems: tuple[str, ...]
    options: tuple[Option, ...] = ()
    refusal: str = ""
    controller: str = ""

    def check(self, options: Mapping[str, str]) -> None:
        """ValueInvalidError, which names what is wrong, unless a device can be attached with these options."""
        known = {option.name: option for option in self.options}
        for name, text in sorted(options.items()):
            if name not in known:
                raise ValueInvalidError(f"A {self.name} device has no option {printable(name, 40)!r}")
            known[name].check(text)
