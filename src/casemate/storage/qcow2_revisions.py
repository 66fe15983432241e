"""Older states of a qcow2 volume: ``VOLUME@TIME.qcow2``, and ``VOLUME@TIME.gone`` while one is being removed.

Each file is a whole state or a layer over the next older one, and so is the volume itself: a line, never a tree.
"""

from __future__ import annotations

from pathlib import Path

from casemate.host.files import fsync_dir
from casemate.storage.qcow2_header import check_file, facts, untouched
from casemate.storage.revision_names import RevisionNames
from casemate.storage.saved_state import SameContent


class Revisions(RevisionNames):
    """The older states of the volume that lies at ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.same = SameContent(path.with_suffix(".same"))
        """Which files show what others showed before a merge."""

    def remove(self) -> None:
        """Remove all states at once, with what was noted of them; the volume itself is being removed."""
        super().remove()
        self.same.remove()

    def mark(self, name: str) -> Path:
        """The file that says that a state is being removed."""
        return self.path(name).with_suffix(".gone")

    def shown(self, keep: int) -> list[str]:
        """The states that can be gone back to, oldest first, no more than are to be kept."""
        sound = [name for name in self.all() if not self.mark(name).exists() and not self.is_current(name)]
        return sound[-keep:] if keep > 0 else []

    def below(self, path: Path) -> list[Path]:
        """What one of the files lies over, nearest first. Every header on the way is checked: StorageError."""
        names = [name for name in reversed(self.all()) if path == self.current or self.path(name) < path]
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
        if names and self.current.is_file():
            newest = self.path(names[-1])
            if self.drop_current():
                changed = True
            elif (
                untouched(self.current)
                and not self.mark(names[-1]).exists()
                and facts(newest).size == facts(self.current).size
            ):
                self.below(self.current)
                newest.replace(self.current)
                changed = True
        for left in self.current.parent.glob(f"{self.stem}@*.gone") if self.current.parent.is_dir() else ():
            if not left.with_suffix(".qcow2").exists():
                left.unlink()
                changed = True
        if changed:
            fsync_dir(self.current.parent)
