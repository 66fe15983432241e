"""What the engine is in the middle of, written down before it begins, so that a killed daemon can be cleaned up after.

One small file per qube in ``STATE/intents``; it is there exactly while volumes may exist that the store does not
know (``create``) or that it has already forgotten (``remove``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from casemate.host.files import replace_file
from casemate.wire.errors import CasemateError, StorageError
from casemate.wire.names import qube_name, uuid_text


@dataclass(frozen=True)
class Intent:
    """``kind`` is ``create`` or ``remove``; ``volumes`` are ``(pool, vid)`` pairs."""

    kind: str
    name: str
    uuid: str
    volumes: tuple[tuple[str, str], ...]


class Intents:
    """The directory of intents."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, intent: Intent) -> None:
        """Put the intent on disk, before anything of it is done."""
        data = json.dumps(
            {"kind": intent.kind, "name": intent.name, "uuid": intent.uuid, "volumes": intent.volumes}
        ).encode()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path(intent), data, mode=0o600)
        except OSError as error:
            raise StorageError(f"{self._directory}: {error.strerror}") from error

    def forget(self, intent: Intent) -> None:
        """The operation has ended, one way or the other."""
        self._path(intent).unlink(missing_ok=True)

    def _path(self, intent: Intent) -> Path:
        return self._directory / f"{intent.kind}-{intent.name}.json"

    def left_over(self) -> list[Intent]:
        """Intents of operations that did not end; unreadable files are dropped (they were never acted on)."""
        found = []
        for path in sorted(self._directory.glob("*.json")) if self._directory.is_dir() else []:
            try:
                raw = json.loads(path.read_bytes())
                found.append(
                    Intent(
                        kind=str(raw["kind"]),
                        name=qube_name(raw["name"]),
                        uuid=uuid_text(raw["uuid"]),
                        volumes=tuple((str(pool), str(vid)) for pool, vid in raw["volumes"]),
                    )
                )
            except (ValueError, KeyError, TypeError, CasemateError):
                path.unlink(missing_ok=True)
        return found
