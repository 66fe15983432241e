"""Qube: identity and state of a qube, which its tags, features and devices are views of; `Domain` has all the rest."""

from __future__ import annotations

from typing import ClassVar

from casemate.model.devices import Assignment, DeviceRef
from casemate.model.kinds import Identity, Int, LabelRef, Name, Stored
from casemate.model.properties import Holder, Property, Setting
from casemate.model.volumes import Volume


class State:
    """The values of one qube, apart from the system that the qube is in.

    Copies of a system share the states of their qubes. A shared state is never changed: a qube takes a copy of its own
    first (`Domain.own`).
    """

    __slots__ = ("devices", "features", "klass", "tags", "text", "unknown", "unknown_attributes", "values", "volumes")

    def __init__(self, klass: type[Qube], values: dict[str, Stored]) -> None:
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
        """The qube as the store writes it; None from a change until it is written again."""

    def copy(self) -> State:
        """The same values, to be changed; therefore without the text."""
        new = State(self.klass, self.values.copy())
        new.features = self.features.copy()
        new.tags = self.tags.copy()
        new.volumes = self.volumes.copy()
        new.devices = self.devices.copy()
        new.unknown = self.unknown
        new.unknown_attributes = self.unknown_attributes
        return new


class Qube(Holder):
    """What is the same for qubes of all classes, whatever they are configured to do."""

    class_name: ClassVar[str]
    """The name of the class on the wire and in the store."""

    name = Property(Name(), setting=Setting.ONCE, doc="Name of the qube.")
    qid = Property(Int(high=65535), setting=Setting.ONCE, doc="Number of the qube; never reused.")
    uuid = Property(Identity(), setting=Setting.ONCE, doc="UUID of the qube, that of its machine too.")
    label = Property(LabelRef(), doc="Colour that tells how far the qube is trusted.")

    @property
    def state(self) -> State:
        """What the qube is made of; only read."""
        raise NotImplementedError

    @property
    def _values(self) -> dict[str, Stored]:  # type: ignore[override]
        return self.state.values

    def __repr__(self) -> str:
        return f"<{self.class_name} {self.state.values.get('name')}>"

    def title(self) -> str:
        return self.name

    def subject(self) -> str | None:
        return self.name

    def base(self) -> Qube | None:
        """The template."""
        raise NotImplementedError

    def provider(self) -> Qube | None:
        """The qube that provides network to this one."""
        raise NotImplementedError

    def admin(self) -> Qube:
        """The admin qube of the same system."""
        raise NotImplementedError
