"""Names of a volume's older states: files beside it, ``VOLUME@TIME.EXTENSION``, where TIME sorts by age.

A name is the time in UTC when the state ended.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from pathlib import Path

from casemate.wire.errors import RevisionNotFoundError, printable

_NAME = re.compile(r"[0-9]{8}-[0-9]{6}")
_FORM = "%Y%m%d-%H%M%S"


class RevisionNames:
    """The older states of the volume that lies at ``path``."""

    def __init__(self, path: Path) -> None:
        self.current = path
        self.stem = path.stem
        self._extension = path.suffix

    def path(self, name: str) -> Path:
        """Where a state lies; RevisionNotFoundError for what is no name of one."""
        if not _NAME.fullmatch(name):
            raise RevisionNotFoundError(f"volume {self.stem} has no older state {printable(name, 40)!r}")
        return self.current.with_name(f"{self.stem}@{name}{self._extension}")

    def all(self) -> list[str]:
        """Every state that there is a file of, oldest first."""
        try:
            entries = [entry.name for entry in self.current.parent.iterdir()]
        except FileNotFoundError:
            return []
        prefix = self.stem + "@"
        names = (
            entry[len(prefix) : -len(self._extension)]
            for entry in entries
            if entry.startswith(prefix) and entry.endswith(self._extension)
        )
        return sorted(name for name in names if _NAME.fullmatch(name) and self.path(name).is_file())

    def is_current(self, name: str) -> bool:
        """Whether a state is the volume's present file: it was named, but the volume was not replaced any more."""
        return self.current.is_file() and self.path(name).samefile(self.current)

    def drop_current(self) -> bool:
        """Remove the newest name if it is only a second one of the volume's present file; whether it was."""
        names = self.all()
        if names and self.is_current(names[-1]):
            self.path(names[-1]).unlink()
            return True
        return False

    def next(self) -> str:
        """A name for the state that ends now, after all others."""
        name = time.strftime(_FORM, time.gmtime())
        last = max(self.all(), default="")
        if name > last:
            return name
        return time.strftime(_FORM, time.gmtime(timegm(time.strptime(last, _FORM)) + 1))

    def remove(self) -> None:
        """Remove all states at once; the volume itself is being removed."""
        if self.current.parent.is_dir():
            for path in self.current.parent.glob(f"{self.stem}@*"):
                path.unlink(missing_ok=True)
