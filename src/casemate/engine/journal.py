"""Write-ahead journal of creations and removals, so that a restarted daemon can finish or take back what it was at.

One small file per operation in ``STATE/intents``, written before the operation touches a disk. It exists exactly while
volumes may exist that the store does not know yet (``create``) or no longer knows (``remove``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from casemate.host.files import remove_unnamed, replace_file
from casemate.wire.errors import CasemateError, StorageError
from casemate.wire.names import qube_name, uuid_text


@dataclass(frozen=True)
class JournalEntry:
    """One operation. ``kind`` is ``create`` or ``remove``; ``volumes`` are ``(pool, vid)`` pairs."""

    kind: str
    name: str
    uuid: str
    volumes: tuple[tuple[str, str], ...]


class OperationJournal:
    """The directory of entries. Made once by the daemon; one operation per qube at a time, under its lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def begin(self, entry: JournalEntry) -> None:
        """Write the entry to the disk. Call it before the first change that the operation makes."""
        data = json.dumps(
            {"kind": entry.kind, "name": entry.name, "uuid": entry.uuid, "volumes": entry.volumes}
        ).encode()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path(entry), data, mode=0o600)
        except OSError as error:
            raise StorageError(f"{self._directory}: {error.strerror}") from error

    def end(self, entry: JournalEntry) -> None:
        """Remove the entry: the operation is complete, or taken back."""
        self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: JournalEntry) -> Path:
        return self._directory / f"{entry.kind}-{entry.name}.json"

    def unfinished(self) -> list[JournalEntry]:
        """Operations that never ended. A file that cannot be read is deleted, and one that has not got its name yet:
        ``begin`` had not returned, so nothing was changed yet."""
        found = []
        remove_unnamed(self._directory)
        for path in sorted(self._directory.glob("*.json")) if self._directory.is_dir() else []:
            try:
                raw = json.loads(path.read_bytes())
                found.append(
                    JournalEntry(
                        kind=str(raw["kind"]),
                        name=qube_name(raw["name"]),
                        uuid=uuid_text(raw["uuid"]),
                        volumes=tuple((str(pool), str(vid)) for pool, vid in raw["volumes"]),
                    )
                )
            except (ValueError, KeyError, TypeError, CasemateError):
                path.unlink(missing_ok=True)
        return found
