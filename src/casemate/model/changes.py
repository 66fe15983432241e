"""What a transaction changed: one typed value per fact, announced after the commit.

Values are texts as the Admin API writes them; ``domain`` is the name of a qube, or None for a global property.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """Base of everything that a transaction can announce."""


@dataclass(frozen=True, slots=True)
class DomainAdded(Change):
    """A qube exists now."""

    name: str
    klass: str


@dataclass(frozen=True, slots=True)
class DomainRemoved(Change):
    """A qube does not exist any more."""

    name: str
    klass: str


@dataclass(frozen=True, slots=True)
class PropertySet(Change):
    """A property was given a value; ``old`` is the effective value before, default included."""

    domain: str | None
    name: str
    new: str | None
    old: str | None
    had_old: bool = True


@dataclass(frozen=True, slots=True)
class PropertyReset(Change):
    """A property has its default again."""

    domain: str | None
    name: str
    old: str | None
    had_old: bool = True


@dataclass(frozen=True, slots=True)
class FeatureSet(Change):
    """A feature was given a value; ``old`` is None where it was absent."""

    domain: str
    feature: str
    value: str
    old: str | None


@dataclass(frozen=True, slots=True)
class FeatureRemoved(Change):
    """A feature is gone."""

    domain: str
    feature: str
    old: str


@dataclass(frozen=True, slots=True)
class TagAdded(Change):
    """A tag was put on a qube."""

    domain: str
    tag: str


@dataclass(frozen=True, slots=True)
class TagRemoved(Change):
    """A tag was taken off a qube."""

    domain: str
    tag: str


@dataclass(frozen=True, slots=True)
class VolumeChanged(Change):
    """The configuration of a volume changed (size, flags, where it lies)."""

    domain: str
    volume: str


@dataclass(frozen=True, slots=True)
class DeviceAssigned(Change):
    """A qube is to get a device; ``device`` is ``BACKEND:PORT:IDENTITY``."""

    domain: str
    devclass: str
    device: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceAssignmentChanged(Change):
    """A qube is to get a device in another way."""

    domain: str
    devclass: str
    device: str


@dataclass(frozen=True, slots=True)
class DeviceUnassigned(Change):
    """A qube is to get a device no more."""

    domain: str
    devclass: str
    device: str


@dataclass(frozen=True, slots=True)
class LabelAdded(Change):
    """A label exists now."""

    name: str


@dataclass(frozen=True, slots=True)
class LabelRemoved(Change):
    """A label does not exist any more."""

    name: str


@dataclass(frozen=True, slots=True)
class PoolAdded(Change):
    """A storage pool exists now."""

    name: str


@dataclass(frozen=True, slots=True)
class PoolChanged(Change):
    """An option of a storage pool changed."""

    name: str


@dataclass(frozen=True, slots=True)
class PoolRemoved(Change):
    """A storage pool does not exist any more."""

    name: str
