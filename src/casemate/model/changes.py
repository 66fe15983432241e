"""Changes: what a transaction did, one object for each fact. They are checked by invariants and announced afterwards.

Values are texts as the Admin API writes them; ``domain`` is the name of a qube, or None for a global property.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import dataclass_transform


@dataclass_transform(frozen_default=True)
class Change:
    """Base of everything that a transaction can announce. Each subclass is a frozen dataclass."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True)(cls)


# ---------------------------------------------------------------------------- qubes, labels and pools as a whole


class _Named(Change):
    name: str


class _OfClass(_Named):
    klass: str


class DomainAdded(_OfClass):
    """A qube exists now."""


class DomainRemoved(_OfClass):
    """A qube does not exist any more."""


class LabelAdded(_Named):
    """A label exists now."""


class LabelRemoved(_Named):
    """A label does not exist any more."""


class PoolAdded(_Named):
    """A storage pool exists now."""


class PoolChanged(_Named):
    """An option of a storage pool changed."""


class PoolRemoved(_Named):
    """A storage pool does not exist any more."""


# ------------------------------------------------------------------------------------------------- what they have


class PropertySet(Change):
    """A property was given a value; ``old`` is the effective value before, default included."""

    domain: str | None
    name: str
    new: str | None
    old: str | None
    had_old: bool = True


class PropertyReset(Change):
    """A property has its default again."""

    domain: str | None
    name: str
    old: str | None
    had_old: bool = True


class _OfQube(Change):
    domain: str


class FeatureSet(_OfQube):
    """A feature was given a value; ``old`` is None where it was absent."""

    feature: str
    value: str
    old: str | None


class FeatureRemoved(_OfQube):
    """A feature was removed."""

    feature: str
    old: str


class _OfTag(_OfQube):
    tag: str


class TagAdded(_OfTag):
    """A tag was added to a qube."""


class TagRemoved(_OfTag):
    """A tag was removed from a qube."""


class VolumeChanged(_OfQube):
    """The configuration of a volume changed (size, flags, pool)."""

    volume: str


class _OfDevice(_OfQube):
    devclass: str
    device: str
    """``BACKEND:PORT:IDENTITY``"""


class DeviceAssigned(_OfDevice):
    """A device was assigned to a qube."""

    options: tuple[tuple[str, str], ...] = ()


class DeviceAssignmentChanged(_OfDevice):
    """The mode of an assignment changed."""


class DeviceUnassigned(_OfDevice):
    """An assignment of a device was removed."""
