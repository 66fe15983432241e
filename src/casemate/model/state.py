"""State: what a qube is made of, apart from the system it is in; copies of a system share it until one changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.model.devices import Assignment, DeviceRef
from casemate.model.kinds import Stored
from casemate.model.volumes import Volume

if TYPE_CHECKING:
    from casemate.model.domain import Domain


class State:
    """The values of one qube. Shared ones are never changed: a qube takes a copy of its own first."""

    __slots__ = ("devices", "features", "klass", "tags", "text", "unknown", "unknown_attributes", "values", "volumes")

    def __init__(self, klass: type[Domain], values: dict[str, Stored]) -> None:
        self.klass = klass
        self.values = values
        self.features: dict[str, str] = {}
        self.tags: set[str] = set()
        self.volumes: dict[str, Volume] = {}
        self.devices: dict[DeviceRef, Assignment] = {}
        self.unknown: tuple[tuple[str, bytes], ...] = ()
        """What the store holds and we do not know: (parent's tag, or "" for the qube; the element verbatim)."""
        self.unknown_attributes: tuple[tuple[str, str, str], ...] = ()
        """Attributes that are not known here: (place, such as ``property:NAME``; key; value)."""
        self.text: bytes | None = None
        """The qube as the store writes it, once it was written."""

    def copy(self) -> State:
        """The same values, to be changed; so without the text."""
        new = State(self.klass, self.values.copy())
        new.features = self.features.copy()
        new.tags = self.tags.copy()
        new.volumes = self.volumes.copy()
        new.devices = self.devices.copy()
        new.unknown = self.unknown
        new.unknown_attributes = self.unknown_attributes
        return new
