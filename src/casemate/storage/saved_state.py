"""Tells saved states of a volume apart without reading them, so that a backup reads only what has changed.

A saved state is a file, or a line of layers. Nobody writes to the files of a saved state: a machine writes to a layer
above. So the inode, length and time of last change of each file identify the content. A state whose files are the
lower part of another's line differs from it only in what the layers above them have::

    then    VOLUME.qcow2 (b) ── VOLUME@T1.qcow2 (a)                    layers (b, a)
    now     VOLUME.qcow2 (c) ── VOLUME@T2.qcow2 (b) ── VOLUME@T1 (a)   layers (c, b, a): changed in 1 layer, c

When older states are removed, a layer is merged into the file below it. The content stays the same, in other files.
``SameContent`` keeps a note of that beside the volume.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host.files import replace_file

_MOST_NOTES = 8
"""Notes kept of a volume. A volume gets one at each stop of its qube, so a backup may be this many runs old."""
_MOST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Served:
    """A saved state that can be read.

    ``size`` is in bytes. ``layers`` identifies the content, uppermost file first. ``changed`` compares it with an
    earlier state: 0 for the same content, N when all differences are in the N uppermost layers, None when nothing is
    known. With 0 there is nothing to be read, and no server.
    """

    size: int
    layers: tuple[str, ...]
    changed: int | None


def identity(path: Path) -> str:
    """What identifies the content of a file that nobody writes to."""
    status = path.stat()
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def changed_layers(now: Sequence[str], since: Sequence[str]) -> int | None:
    """How many of the uppermost layers have the differences; None when that cannot be said."""
    above = len(now) - len(since)
    return above if since and above >= 0 and list(now[above:]) == list(since) else None


class SameContent:
    """Notes that two lines of layers show the same content. Kept in a file beside the volume; losing it costs time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, before: Sequence[str], after: Sequence[str]) -> None:
        """What ``before`` showed is now shown by ``after``."""
        notes = [*self._read(), [list(before), list(after)]][-_MOST_NOTES:]
        replace_file(self._path, json.dumps(notes).encode("ascii"))

    def today(self, layers: Sequence[str]) -> list[str]:
        """The line that shows now what these layers showed once."""
        found = list(layers)
        for before, after in self._read():
            above = len(found) - len(before)
            if above >= 0 and found[above:] == before:
                found[above:] = after
        return found

    def remove(self) -> None:
        """The volume is being removed."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> list[list[list[str]]]:
        try:
            with open(self._path, "rb") as file:
                found: list[list[list[str]]] = json.loads(file.read(_MOST_BYTES))
                return found
        except (OSError, ValueError):
            return []
