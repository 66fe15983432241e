"""The devices assigned to one qube: a view of the qube's state, through which they are changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from casemate.model.changes import DeviceAssigned, DeviceAssignmentChanged, DeviceUnassigned
from casemate.model.devices import MAX_ASSIGNMENTS, Assignment, DeviceRef
from casemate.model.qube import Qube
from casemate.wire.errors import DeviceAlreadyAssignedError, DeviceNotAssignedError, ValueInvalidError


class Assignments:
    """The assignments of one qube, in order; a view that also changes them."""

    __slots__ = ("_qube",)

    def __init__(self, qube: Qube) -> None:
        self._qube = qube

    @property
    def _values(self) -> dict[DeviceRef, Assignment]:
        return self._qube.state.devices

    def __contains__(self, device: object) -> bool:
        return device in self._values

    def __iter__(self) -> Iterator[Assignment]:
        return iter([self._values[key] for key in sorted(self._values)])

    def __len__(self) -> int:
        return len(self._values)

    def find(self, device: DeviceRef) -> Assignment:
        """The assignment of exactly that device; raises DeviceNotAssignedError."""
        try:
            return self._values[device]
        except KeyError:
            raise DeviceNotAssignedError(f"{device} is not assigned to {self._qube.name}") from None

    def add(self, assignment: Assignment) -> None:
        """Assign a device; raises DeviceAlreadyAssignedError."""
        device = assignment.device
        if device in self._values:
            raise DeviceAlreadyAssignedError(f"{device} is assigned to {self._qube.name} already")
        if len(self._values) >= MAX_ASSIGNMENTS:
            raise ValueInvalidError(f"{self._qube.name}: a qube has at most {MAX_ASSIGNMENTS} assigned devices")
        self._qube.record(DeviceAssigned(self._qube.name, device.devclass, str(device), assignment.options))
        self._values[device] = assignment

    def set_mode(self, device: DeviceRef, mode: str) -> None:
        """Change the mode of an assignment."""
        found = replace(self.find(device), mode=mode, written=None)
        self._qube.record(DeviceAssignmentChanged(self._qube.name, device.devclass, str(device)))
        self._values[device] = found

    def remove(self, device: DeviceRef) -> None:
        """Assign a device no more; raises DeviceNotAssignedError."""
        self.find(device)
        self._qube.record(DeviceUnassigned(self._qube.name, device.devclass, str(device)))
        self._values.pop(device)
