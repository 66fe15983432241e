"""Volumes: how the disks of a qube are configured, and what new qubes get. A volume that a class lacks is None."""

from __future__ import annotations

from dataclasses import dataclass

POOL_REVISIONS = 1
"""Older states kept of the volumes of a pool that says nothing else. (as in Qubes OS)"""

VOLUME_NAMES = ("root", "private", "volatile", "kernel")
"""Every volume that some class of qubes can have."""

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Volume:
    """One disk of a qube, as configured. A change replaces the object.

    ``vid`` is the volume's id within its pool, ``QUBE/VOLUME`` for those made here. ``snap_on_start``: each start
    gets a fresh overlay over ``source`` (the vid of the origin). ``save_on_stop``: what was written is kept. A
    volume with neither is fresh at each start. ``revisions_to_keep`` counts older states that are kept (-1: none, as
    0); with ``own_revisions`` False nobody chose it for this volume, and it is what the volume's pool says. ``extra``
    holds attributes of the store that are not known here.
    """

    name: str
    pool: str
    vid: str
    size: int = 0
    rw: bool = False
    snap_on_start: bool = False
    save_on_stop: bool = False
    source: str | None = None
    revisions_to_keep: int = 0
    own_revisions: bool = True
    ephemeral: bool | None = None
    extra: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeRule:
    """What a new qube of a class gets for one volume."""

    size: int
    rw: bool = True
    snap_on_start: bool = False
    save_on_stop: bool = False
    revisions_to_keep: int = 0

    def new(self, qube: str, name: str, pool: str) -> Volume:
        """The volume of a new qube."""
        return Volume(
            name=name,
            pool=pool,
            vid=f"{qube}/{name}",
            size=self.size,
            rw=self.rw,
            snap_on_start=self.snap_on_start,
            save_on_stop=self.save_on_stop,
            revisions_to_keep=self.revisions_to_keep,
            own_revisions=not self.save_on_stop,
        )


KEPT_ROOT = VolumeRule(20 * _GIB, save_on_stop=True, revisions_to_keep=POOL_REVISIONS)
SNAPSHOT_ROOT = VolumeRule(20 * _GIB, snap_on_start=True)
KEPT_PRIVATE = VolumeRule(2 * _GIB, save_on_stop=True, revisions_to_keep=POOL_REVISIONS)
SNAPSHOT_PRIVATE = VolumeRule(2 * _GIB, snap_on_start=True)
VOLATILE = VolumeRule(12 * _GIB)
