"""Looks for damage in a repository and says which qubes of which backups it touches."""

from __future__ import annotations

from dataclasses import dataclass, field

from casemate.backup.errors import BackupError, DamagedError
from casemate.backup.incremental.reader import IncrementalBackup
from casemate.backup.incremental.repository import Repository


@dataclass(slots=True)
class Findings:
    """``damage``: data of the repository is damaged now. ``touched``: qubes that are not whole, by backup."""

    damage: bool = False
    touched: dict[str, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged and every backup is whole."""
        return not self.damage and not self.touched


def check(repository: Repository, read_data: bool, repair: bool) -> Findings:
    """Check structure and checksums; when these are wrong, or with ``read_data``, read everything and compare it.

    Damage is remembered, so that no backup is made that relies on damaged data. ``repair`` takes that data out and
    forgets it; then the volumes that it belonged to are read in full at the next backup.
    """
    found = Findings()
    try:
        said = repository.borg.check(repair)
    except DamagedError as error:
        said = str(error)
    found.lines += said.splitlines()
    if said or read_data or repair:
        _read(repository, found)
    found.damage = not repair and (bool(said) or bool(found.touched))
    memory = repository.memory()
    memory.damaged = found.damage
    if found.damage or repair:
        memory.volumes.clear()
    memory.stamp = ""
    memory.save()
    if found.sound:
        found.lines.append("No damage was found")
    return found


def _read(repository: Repository, found: Findings) -> None:
    """Read every layer once, and note the qubes that need one which is not as it was written."""
    try:
        summaries = repository.listing().snapshots
    except BackupError as error:
        found.lines.append(f"The list of backups cannot be read: {error}")
        found.touched["all backups"] = []
        return
    backups: list[IncrementalBackup] = []
    for summary in summaries:
        try:
            backups.append(IncrementalBackup(repository, repository.snapshot(summary)))
        except BackupError as error:
            found.lines.append(f"Backup {summary.id}: no qube of it can be restored: {error}")
            found.touched[summary.id] = []
    damaged = repository.damaged_layers([one.snapshot for one in backups])
    for backup in backups:
        for qube in backup.contents.qubes.values():
            volumes = [one for name, one in backup.snapshot.volumes.items() if name.startswith(qube.path)]
            if any(layer.name in damaged for volume in volumes for layer in volume.layers):
                found.touched.setdefault(backup.snapshot.id, []).append(qube.name)
    found.lines += [f"Backup {one}: damaged is {', '.join(names)}" for one, names in found.touched.items() if names]
