"""Reads one backup of a repository into a target, and says of each qube whether it is whole.

It has the shape of ``casemate.backup.reader.Backup``, so that tools verify and restore from both in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from casemate.backup import contents as stored
from casemate.backup.contents import StoredQube
from casemate.backup.errors import DamagedError, PassphraseError
from casemate.backup.incremental.borg import LockedError, MissingBorgError, NoRepositoryError
from casemate.backup.incremental.layer import CLUSTER, LayerReader, overlaid
from casemate.backup.incremental.repository import Repository
from casemate.backup.incremental.snapshot import Snapshot, VolumeRef
from casemate.backup.reader import MAX_SMALL, Report, Target, Verdict
from casemate.wire.errors import CasemateError

_NO_MORE = (PassphraseError, LockedError, MissingBorgError, NoRepositoryError)
"""Errors of the repository as a whole: nothing more can be read after them."""


class IncrementalBackup:
    """A backup that can be read. ``contents`` is what its copy of the store says."""

    def __init__(self, repository: Repository, snapshot: Snapshot) -> None:
        """RefusedError when the snapshot's store cannot be."""
        self._repository = repository
        self.snapshot = snapshot
        self.contents = stored.parse(snapshot.store)

    def run(self, target: Target, only: Collection[str] | None = None, home: bool = True) -> Report:
        """Read the qubes that matter (None: all). ``home`` has no meaning: no host's home directory is in it."""
        qubes = [qube for name, qube in self.contents.qubes.items() if only is None or name in only]
        report = Report(None, self.contents, {qube.name: Verdict(qube.name) for qube in qubes}, None)
        for qube in qubes:
            verdict = report.verdicts[qube.name]
            try:
                self._qube(qube, target)
                verdict.state = "whole"
            except DamagedError as error:
                verdict.state, verdict.why = "damaged", str(error)
            except CasemateError as error:
                verdict.state, verdict.why = "damaged", str(error)
                if isinstance(error, _NO_MORE):
                    report.error = str(error)
                    break
        for verdict in report.verdicts.values():
            if verdict.state == "missing":
                verdict.why = "it was not reached"
        return report

    def volumes_of(self, qube: StoredQube) -> dict[str, int]:
        """The sizes of a qube's volumes that are in the backup, in bytes, by name."""
        volumes = self.snapshot.volumes
        return {
            image.name: volumes[f"{qube.path}{name}"].size
            for name, image in qube.images.items()
            if f"{qube.path}{name}" in volumes
        }

    def read_volume(self, qube: StoredQube, name: str, target: Target) -> None:
        """Read one volume that ``volumes_of`` has; DamagedError when it is not whole."""
        for file, image in qube.images.items():
            if image.name == name:
                self._volume(qube, name, image.size, self.snapshot.volumes[f"{qube.path}{file}"], target)

    def _qube(self, qube: StoredQube, target: Target) -> None:
        volumes, small = self.snapshot.volumes, self.snapshot.small
        missing = [name for name in qube.images if f"{qube.path}{name}" not in volumes]
        if missing:
            raise DamagedError(f"{', '.join(sorted(missing))} is not in the backup")
        for name, image in qube.images.items():
            self._volume(qube, image.name, image.size, volumes[f"{qube.path}{name}"], target)
        for name, data in small.items():
            if name.startswith(qube.path):
                if len(data) > MAX_SMALL:
                    raise DamagedError(f"{name} has {len(data)} bytes")
                target.file(qube, name[len(qube.path) :], data)

    def _volume(self, qube: StoredQube, name: str, most: int | None, volume: VolumeRef, target: Target) -> None:
        what = f"volume {name} of {qube.name}"
        if not 1 <= len(volume.layers) <= 2 or (most is not None and volume.size > most):
            raise DamagedError(f"{what} is not what the store of the backup says")
        sink = target.volume(qube, name)
        with contextlib.ExitStack() as stack:
            readers = []
            for layer in volume.layers:
                stream = stack.enter_context(self._repository.reading(layer))
                readers.append(LayerReader(stream, f"{layer.name} of {what}"))
            if any(reader.size != volume.size for reader in readers):
                raise DamagedError(f"{what} has layers of another size")
            sink.begin(volume.size)
            pieces = readers[0].pieces()
            for piece in pieces if len(readers) == 1 else overlaid(pieces, readers[1].pieces()):
                if piece.data is None:
                    continue
                offset = piece.first * CLUSTER
                data = piece.data[: volume.size - offset]
                sink.write(offset, data)
                target.progress(len(data))
        target.finish_volume(qube, name)
