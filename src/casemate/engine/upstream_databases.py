"""``/run/qubes/qubesdb.NAME.sock``: running qubes' databases where upstream's tools of the host look for them.

Each is a symbolic link to the socket of the qube's link. The directory above that socket belongs to the qube's user
and is closed to others, so it is root who can read databases this way; members of the group cannot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from casemate.engine.steps import Start
from casemate.model.domain import Domain
from casemate.settings import Settings
from casemate.wire.upstream_paths import database_socket


class UpstreamDatabases:
    """A step of each start, after the link. Does nothing without a directory: then the host is not laid out so."""

    def __init__(self, settings: Settings, directory: Path | None) -> None:
        self._settings = settings
        self._directory = directory

    async def up(self, start: Start) -> None:
        """Make the link."""
        self._make(start.domain.name)

    async def down(self, domain: Domain) -> None:
        """Remove it."""
        if self._directory is not None:
            self._remove(self._directory / database_socket(domain.name))

    def refresh(self, running: Iterable[str]) -> None:
        """Bring the directory up to date: qubes may have come and gone, or it may be new, while no daemon ran."""
        if self._directory is None:
            return
        kept = set(running)
        for path in self._directory.glob(database_socket("*")):
            if path.name not in map(database_socket, kept):
                self._remove(path)
        for name in kept:
            self._make(name)

    def _make(self, name: str) -> None:
        if self._directory is None:
            return
        path = self._directory / database_socket(name)
        self._remove(path)
        if not os.path.lexists(path):  # what is not ours stays
            path.symlink_to(self._settings.database_socket(name))

    def _remove(self, path: Path) -> None:
        """Unless it is somebody else's."""
        if path.is_symlink() and self._settings.run in path.readlink().parents:
            path.unlink(missing_ok=True)
