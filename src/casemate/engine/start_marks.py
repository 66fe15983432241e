"""Marks on the disk that a qube's start was finished: the next daemon adopts such a machine, and ends others."""

from __future__ import annotations

from pathlib import Path

from casemate.host.files import replace_file
from casemate.settings import Settings


class StartMarks:
    """``RUN/qubes/NAME.up`` is there from the end of a start to the end of the machine; it says when that started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def write(self, name: str, start_time: str | None) -> None:
        """The start is finished; ``start_time`` as the table of states has it."""
        replace_file(self._path(name), f"{start_time or ''}\n".encode(), mode=0o600)

    def exists(self, name: str) -> bool:
        """Whether the last start was finished and the machine's end was not noticed since."""
        return self._path(name).exists()

    def start_time(self, name: str) -> str | None:
        """When the machine was started, None where an older daemon did not write it."""
        return self._path(name).read_text().strip() or None

    def remove(self, name: str) -> None:
        """The machine has ended. Absent is fine."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._settings.qube_run(name).with_suffix(".up")
