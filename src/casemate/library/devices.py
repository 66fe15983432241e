"""Devices that a qube offers, has, or gets at each start; each access is one call of the Admin API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from casemate.client import device_lines
from casemate.client.device_lines import ANY
from casemate.client.qubes import Qubes as Client
from casemate.wire.errors import DeviceNotFoundError, ValueInvalidError

MODES = {"required": "required", "ask": "ask-to-attach", "auto": "auto-attach"}
"""Words for the modes of an assignment, and what the Admin API calls them."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as a list of the Admin API has it.

    ``backend`` is the qube that offers it, ``port`` where it is there, ``ident`` what it is (``*``: any). ``facts`` has
    the rest: ``name``, ``vendor``, ``product``, ``interfaces``, ``mode`` of an assignment. Text that the device says of
    itself is hostile: escape it before you show it on a terminal.
    """

    devclass: str
    backend: str
    port: str
    ident: str = ANY
    facts: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.backend}:{self.port}"


class DeviceClass:
    """The devices of one class, as one qube sees them; made by ``qube.devices["block"]``.

    Wherever a device is an argument it is a `Device`, or text: ``BACKEND:PORT`` or ``BACKEND:PORT:IDENTITY``.
    """

    def __init__(self, client: Client, qube: str, devclass: str) -> None:
        self._client = client
        self._qube = qube
        self.name = devclass

    def available(self) -> list[Device]:
        """What this qube offers to others."""
        return self._list("Available")

    def attached(self) -> list[Device]:
        """What this qube has now."""
        return self._list("Attached")

    def assigned(self) -> list[Device]:
        """What this qube gets at each start."""
        return self._list("Assigned")

    def attach(self, device: Device | str, **options: str | bool) -> None:
        """Give a device to this running qube, until it stops. ``read_only=True``; other options as the class has them.

        Raises DeviceNotFoundError, DeviceAlreadyAttachedError, NotRunningError.
        """
        self._give("Attach", device, "manual", options)

    def detach(self, device: Device | str) -> None:
        """Take a device from this running qube. Raises DeviceNotAssignedError."""
        self._client.call(self._method("Detach"), self._argument(device), self._qube)

    def assign(self, device: Device | str, mode: str = "required", **options: str | bool) -> None:
        """Give a device to this qube at each start. ``mode`` is ``required``, ``ask`` or ``auto``.

        Text without an identity means the device that is there now (DeviceNotFoundError where there is none);
        ``BACKEND:PORT:*`` means whatever will be at that port.
        """
        if mode not in MODES:
            raise ValueInvalidError(f"No such mode of an assignment: {mode!r}; there are {', '.join(MODES)}")
        if isinstance(device, str) and device.count(":") == 1:
            device = self._present(device)
        self._give("Assign", device, MODES[mode], options)

    def unassign(self, device: Device | str) -> None:
        """Do not give a device at each start any more. Text without an identity means each assignment of that port."""
        if isinstance(device, str) and device.count(":") == 1:
            for one in self.assigned():
                if str(one) == device:
                    self._client.call(self._method("Unassign"), self._argument(one), self._qube)
            return
        self._client.call(self._method("Unassign"), self._argument(device), self._qube)

    def _present(self, text: str) -> Device:
        backend, port, _ = device_lines.split(text)
        for one in DeviceClass(self._client, backend, self.name).available():
            if one.port == port:
                return one
        raise DeviceNotFoundError(f"{backend} does not offer {self.name} device {port!r}")

    def _give(self, verb: str, device: Device | str, mode: str, options: Mapping[str, str | bool]) -> None:
        words = {
            key.replace("_", "-"): ("yes" if value else "no") if isinstance(value, bool) else value
            for key, value in options.items()
        }
        argument = self._argument(device)
        said = device_lines.payload(self.name, argument, mode, words)
        self._client.call(self._method(verb), argument, self._qube, said)

    def _argument(self, device: Device | str) -> str:
        if isinstance(device, str):
            return device_lines.argument(*device_lines.split(device))
        return device_lines.argument(device.backend, device.port, device.ident)

    def _method(self, verb: str) -> str:
        return f"admin.vm.device.{self.name}.{verb}"

    def _list(self, what: str) -> list[Device]:
        found = []
        for line in self._client.call(self._method(what), "", self._qube).splitlines():
            facts = device_lines.parse_line(line)
            found.append(
                Device(
                    self.name,
                    facts.pop("backend_domain", ""),
                    facts.pop("port_id", ""),
                    facts.pop("device_id", ANY),
                    facts,
                )
            )
        return found

    def __repr__(self) -> str:
        return f"<{self.name} devices of {self._qube}>"


class Devices(Mapping[str, DeviceClass]):
    """The classes of devices of this host by name, for one qube: ``block``, ``pci``, ``usb``, ``mic``."""

    def __init__(self, client: Client, qube: str) -> None:
        self._client = client
        self._qube = qube

    def __getitem__(self, name: str) -> DeviceClass:
        if name not in list(self):
            raise KeyError(name)
        return DeviceClass(self._client, self._qube, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._client.call("admin.deviceclass.List").split())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<devices of {self._qube}>"
