"""Running qubes as they were, kept under names (docs/howto/disposables.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One that is kept. Made by `Qubes.snapshots`."""

    name: str
    qube: str
    """The name of the qube that it was taken of, which may be gone."""
    base: str
    """The name of the disposable template that what goes on from it is based on."""
    made: int
    """When, in seconds since the epoch."""
    bytes: int
    """Its size on disk, without what its disks had written."""


def parse(line: str) -> Snapshot:
    """From a line of ``admin.casemate.snapshot.List``."""
    name, *words = line.split(" ")
    said = dict(word.split("=", 1) for word in words)
    return Snapshot(name, said["qube"], said["base"], int(said["made"]), int(said["bytes"]))
