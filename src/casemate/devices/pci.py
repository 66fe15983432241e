"""PCI devices of the host. They are listed only: a device that a qube has had is not clean for the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from uuid import UUID

from casemate.devices.device_class import Attachment, DeviceClass, HostDevice, Machine, Opening
from casemate.wire.errors import NotImplementedHereError

NAME = "pci"
REFUSAL = "PCI devices cannot be given to qubes here"


class PciDevices:
    """See ``device_class.Provider``."""

    def __init__(self, opening: Opening) -> None:
        self._kernel = opening.kernel

    def list(self) -> list[HostDevice]:
        """All PCI functions, by port."""
        return sorted(self._described(), key=lambda device: device.port)

    def _described(self) -> Iterator[HostDevice]:
        for directory in self._kernel.directories("bus/pci/devices"):
            vendor, product, kind = (self._kernel.text(directory, name)[2:] for name in ("vendor", "device", "class"))
            port = directory.name.removeprefix("0000:").replace(":", "_")
            yield HostDevice(NAME, port, f"0x{vendor}:0x{product}::p{kind}", vendor, product, interfaces=f"p{kind}")

    def resources(self, device: HostDevice) -> frozenset[str]:
        """The function itself."""
        return frozenset({f"pci:{device.port}"})

    async def attached(self) -> Mapping[UUID, Sequence[Attachment]]:
        """Nobody has any."""
        return {}

    async def attach(
        self, machine: Machine, device: HostDevice, options: Mapping[str, str], before: Callable[[], None]
    ) -> None:
        """NotImplementedHereError."""
        raise NotImplementedHereError(REFUSAL)

    async def detach(self, machine: Machine, attachment: Attachment) -> None:
        """NotImplementedHereError."""
        raise NotImplementedHereError(REFUSAL)

    def release(self, machine: Machine) -> None:
        """Nothing was lent."""


DEVICE_CLASS = DeviceClass(
    name=NAME,
    doc="PCI devices of the host. They are listed and cannot be given to qubes.",
    open=PciDevices,
    subsystems=("pci",),
    refusal=REFUSAL,
)
