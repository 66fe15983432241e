"""What a state remembers of a repository: for each volume, which content of it the repository has, in which layers.

It is a file, ``STATE/backup/repositories/ID.json``. It only saves work: without it volumes are read again in full. What
it says is believed only while the repository still has the layers. It is written after each volume, so that a run that
was broken off is taken up where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from casemate.backup import whole_file
from casemate.backup.incremental.layer import Run
from casemate.backup.incremental.snapshot import LayerRef, layer_ref


@dataclass(frozen=True, slots=True)
class Known:
    """A volume as it was read last.

    ``content`` identifies what was read (``Served.layers`` of the storage). ``clusters`` is how many the full layer
    has, ``difference`` the runs of the difference.
    """

    size: int
    content: tuple[str, ...]
    layers: tuple[LayerRef, ...]
    clusters: int
    difference: tuple[Run, ...] = ()


@dataclass(slots=True)
class Memory:
    """The content of the file. ``volumes`` is by ``QUBE_UUID/VOLUME``.

    ``stamp`` is the repository's last transaction that is known here, ``newest`` the id of its newest snapshot.
    ``damaged``: a check has found damage that was not repaired; what is stored now might rely on damaged data.
    """

    path: Path
    stamp: str = ""
    newest: str = ""
    damaged: bool = False
    volumes: dict[str, Known] = field(default_factory=dict)

    def forget_without(self, layers: Collection[str]) -> None:
        """Forget the volumes that need layers other than these."""
        for key, known in list(self.volumes.items()):
            if any(layer.name not in layers for layer in known.layers):
                del self.volumes[key]

    def save(self) -> None:
        """Write it."""
        volumes = {
            key: [
                one.size, one.content, [layer.as_json() for layer in one.layers], one.clusters,
                [[run.first, run.count, int(run.zero)] for run in one.difference],
            ]
            for key, one in self.volumes.items()
        }  # fmt: skip
        whole = {"stamp": self.stamp, "newest": self.newest, "damaged": self.damaged, "volumes": volumes}
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        whole_file.replace(self.path, json.dumps(whole, separators=(",", ":")).encode("ascii"))


def load(directory: Path, repository: str) -> Memory:
    """What is remembered of a repository; nothing when there is no file, or none that can be read."""
    path = directory / f"{repository}.json"
    try:
        found = json.loads(path.read_bytes())
        volumes = {
            str(key): Known(
                int(size), tuple(map(str, content)), tuple(layer_ref(one) for one in layers), int(count),
                tuple(Run(int(a), int(b), bool(c)) for a, b, c in difference),
            )
            for key, (size, content, layers, count, difference) in found["volumes"].items()
        }  # fmt: skip
        return Memory(path, str(found["stamp"]), str(found["newest"]), bool(found["damaged"]), volumes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Memory(path)
