"""Earlier saves: the one before the last beside the store, and one an hour in a directory. Each is a whole file."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from casemate.model import invariants
from casemate.store import reader
from casemate.store.files import Files
from casemate.wire.errors import StoreError, ValueInvalidError, printable

EVERY = 3600.0
"""Seconds between two copies that are kept."""
COPIES = 24
"""Copies that are kept: with one an hour, those of a day of use. An hour without a save makes none."""
_STAMP = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z\.xml", re.ASCII)


@dataclass(frozen=True, slots=True)
class Copy:
    """An earlier state of the store. ``problem`` says why it cannot be restored; empty where it can."""

    name: str
    path: Path
    when: datetime
    generation: int
    qubes: int
    problem: str


class History:
    """The earlier saves of one store. Call ``keep`` and ``set_aside`` under the store's exclusive lock."""

    def __init__(self, path: Path, files: Files) -> None:
        self.previous = path.with_name(path.name + ".1")
        """The save before the last one."""
        self.directory = path.with_name(path.name + ".history")
        self._path = path
        self._files = files
        self._newest = 0.0

    def keep(self) -> None:
        """Keep the present file as a copy, unless there is one of the last hour. A second link to it, no data."""
        now = time.time()
        if 0 <= now - self._newest < EVERY:
            return
        names = self._names()
        self._newest = _time_of(names[-1]) if names else 0.0
        if 0 <= now - self._newest < EVERY:
            return
        self.directory.mkdir(mode=0o700, exist_ok=True)
        copy = self.directory / time.strftime(f"{_STAMP}.xml", time.gmtime(now))
        self._files.link(self._path, copy)
        self._newest = now
        for old in names[: max(0, len(names) + 1 - COPIES)]:
            self._files.remove(self.directory / old)

    def _names(self) -> list[str]:
        if not self.directory.is_dir():
            return []
        return sorted(path.name for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    def set_aside(self) -> Path:
        """Give the damaged file a second name, so that it is not lost when a good one replaces it; its path."""
        aside = self._path.with_name(f"{self._path.name}.damaged-{time.strftime(_STAMP, time.gmtime())}")
        self._files.remove(aside)
        self._files.link(self._path, aside)
        return aside

    def copies(self) -> list[Copy]:
        """What could be restored, newest first."""
        paths = [self.directory / name for name in self._names()]
        if self.previous.exists():
            paths.append(self.previous)
        found = [self._look(path) for path in paths]
        return sorted(found, key=lambda copy: copy.when, reverse=True)

    def find(self, name: str) -> Copy:
        """A copy by the name that ``copies`` shows; raises ValueInvalidError."""
        for copy in self.copies():
            if copy.name == name:
                return copy
        raise ValueInvalidError(f"No such copy of {self._path}: {printable(name, 80)!r}")

    def _look(self, path: Path) -> Copy:
        name = path.name if path == self.previous else path.stem
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        try:
            system = reader.read(path.read_bytes(), str(path))
            problem = "; ".join(invariants.problems(system))
            return Copy(name, path, when, system.generation, len(system.domains), problem)
        except (StoreError, OSError) as error:
            return Copy(name, path, when, 0, 0, str(error))


def _time_of(name: str) -> float:
    return datetime.strptime(name, f"{_STAMP}.xml").replace(tzinfo=UTC).timestamp()
