"""Older states of a volume, as files beside it: ``VOLUME@TIME.qcow2``; ``VOLUME@TIME.gone`` while one is forgotten.

Each file is a whole state or a layer over the next older one, and so is the volume itself: a line, never a tree.
A name is the time when the state ended, in UTC, so that names sort by age.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from pathlib import Path

from casemate.host.files import fsync_dir
from casemate.storage.qcow2_header import check_file, facts, untouched
from casemate.wire.errors import RevisionNotFoundError, printable

_NAME = re.compile(r"[0-9]{8}-[0-9]{6}")
_FORM = "%Y%m%d-%H%M%S"


class Revisions:
    """The older states of the volume that lies at ``path``."""

    def __init__(self, path: Path) -> None:
        self._current = path
        self._stem = path.name.removesuffix(".qcow2")

    def path(self, name: str) -> Path:
        """Where a state lies; RevisionNotFoundError for what is no name of one."""
        if not _NAME.fullmatch(name):
            raise RevisionNotFoundError(f"volume {self._stem} has no older state {printable(name, 40)!r}")
        return self._current.with_name(f"{self._stem}@{name}.qcow2")

    def mark(self, name: str) -> Path:
        """What says that a state is being forgotten."""
        return self.path(name).with_suffix(".gone")

    def all(self) -> list[str]:
        """Every state that there is a file of, oldest first."""
        try:
            entries = [entry.name for entry in self._current.parent.iterdir()]
        except FileNotFoundError:
            return []
        prefix = self._stem + "@"
        names = (entry[len(prefix) : -len(".qcow2")] for entry in entries if entry.startswith(prefix))
        return sorted(name for name in names if _NAME.fullmatch(name) and self.path(name).is_file())

    def shown(self, keep: int) -> list[str]:
        """The states that can be gone back to, oldest first, no more than are to be kept."""
        sound = [name for name in self.all() if not self.mark(name).exists() and not self._is_current(name)]
        return sound[-keep:] if keep > 0 else []

    def _is_current(self, name: str) -> bool:
        return self._current.is_file() and self.path(name).samefile(self._current)

    def next(self) -> str:
        """A name for the state that ends now, after all others."""
        name = time.strftime(_FORM, time.gmtime())
        last = max(self.all(), default="")
        if name > last:
            return name
        return time.strftime(_FORM, time.gmtime(timegm(time.strptime(last, _FORM)) + 1))

    def below(self, path: Path) -> list[Path]:
        """What one of the files lies over, nearest first. Every header on the way is checked: StorageError."""
        names = [name for name in reversed(self.all()) if path == self._current or self.path(name) < path]
        found: list[Path] = []
        for name in names:
            if not facts(path).layered:
                break
            base = self.path(name)
            check_file(path, base)
            found.append(base)
            path = base
        check_file(path, None)
        return found

    def settle(self) -> None:
        """Finish what was cut short, and undo a layer that nothing was written to. The volume is not in use."""
        changed = False
        names = self.all()
        if names and self._current.is_file():
            newest = self.path(names[-1])
            if newest.samefile(self._current):
                newest.unlink()
                changed = True
            elif untouched(self._current) and not self.mark(names[-1]).exists():
                if facts(newest).size == facts(self._current).size:
                    self.below(self._current)
                    newest.replace(self._current)
                    changed = True
        for left in self._current.parent.glob(f"{self._stem}@*.gone") if self._current.parent.is_dir() else ():
            if not left.with_suffix(".qcow2").exists():
                left.unlink()
                changed = True
        if changed:
            fsync_dir(self._current.parent)

    def remove(self) -> None:
        """Forget all states at once; the volume itself is being removed."""
        if self._current.parent.is_dir():
            for path in self._current.parent.glob(f"{self._stem}@*"):
                path.unlink(missing_ok=True)
