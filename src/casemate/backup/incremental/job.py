"""``python -m casemate.backup.incremental.job``: the process that makes one backup in a repository, for the daemon.

It is a process of its own because it keeps processors busy and holds the repository's lock: both end with it. It speaks
JSON, a line each:

    daemon → job   the order: repository, passphrase, state, store, files, rules of retention
    job → daemon   {"open": NAME, "since": [...]}, for each volume when its turn comes
    daemon → job   {"address": PATH, "size": ..., "content": [...], "changed": ...}, or {"error": WHY}
    job → daemon   {"close": NAME}; {"progress": BYTES} now and then
    job → daemon   {"done": BYTES, "id": ID}, or {"error": WHY}, last

When its standard input ends it stops: nobody waits for it any more.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate.backup.errors import BackupError
from casemate.backup.incremental.borg import Borg
from casemate.backup.incremental.layer import Run, changed_runs, data_clusters, full_runs, stream
from casemate.backup.incremental.memory import Known, Memory
from casemate.backup.incremental.nbd import NbdClient
from casemate.backup.incremental.repository import Repository
from casemate.backup.incremental.retention import Keep, keep_from
from casemate.backup.incremental.snapshot import SNAPSHOT, LayerRef, Snapshot, VolumeRef, new_id
from casemate.backup.job_line import Progress, ask, order, say
from casemate.wire.errors import CasemateError

_LARGEST_DIFFERENCE = 0.25
"""Share of the full layer's clusters beyond which a new full layer is made. A difference is read anew at each backup,
so it must stay small beside the volume."""
_FULL_ANYWAY = 1024
"""Clusters (64 MiB) that a difference may have, however small the volume: they cost less than a second."""


class Creation:
    """Makes one backup. ``run`` once, with the repository held."""

    def __init__(self, repository: Repository, memory: Memory, progress: Callable[[int], None]) -> None:
        self._repository = repository
        self._borg: Borg = repository.borg
        self._memory = memory
        self._progress = progress
        self.fresh = 0
        """Bytes that were given to borg."""

    def run(self, store: bytes, files: list[dict[str, Any]], qubes: int) -> str:
        """The id of the backup. The memory is up to date after each volume, so that a later run goes on from there."""
        memory = self._memory
        if memory.damaged:
            raise BackupError(
                f"{self._repository.place} is damaged, as a check has found: what is stored now might rely on what is "
                f"lost. Run casemate backup check --repair {self._repository.place} first"
            )
        # Whoever has changed the repository meanwhile may have removed layers that are remembered here.
        if not memory.stamp or memory.stamp != self._repository.stamp():
            listing = self._repository.listing()
            memory.forget_without(listing.layers)
            memory.newest = listing.snapshots[-1].id if listing.snapshots else ""
        snapshot = Snapshot(new_id(memory.newest, time.time()), store)
        for one in files:
            if "data" in one:
                snapshot.small[one["name"]] = base64.b64decode(one["data"])
            else:
                snapshot.volumes[one["name"]] = self._volume(one["name"], one["volume"])
        data = snapshot.build()
        self.fresh += len(data)
        summary = snapshot.summary(data, qubes, self.fresh)
        self._borg.create_small(f"{SNAPSHOT}{snapshot.id}", summary, data)
        memory.stamp, memory.newest = self._repository.stamp(), snapshot.id
        memory.save()
        return snapshot.id

    def _volume(self, name: str, key: str) -> VolumeRef:
        known = self._memory.volumes.get(key)
        served = ask(open=name, since=list(known.content) if known else [])
        size, content, changed = int(served["size"]), tuple(served["content"]), served["changed"]
        if known is None or known.size != size or changed != 0:
            client = NbdClient(Path(served["address"]), served["export"])
            try:
                known = self._read(client, known if known and known.size == size else None, changed, content)
            finally:
                client.close()
        say(close=name)
        self._memory.volumes[key] = replace(known, content=content)  # the same content may be in other files now
        self._memory.stamp = self._repository.stamp()
        self._memory.save()
        return VolumeRef(size, known.layers)

    def _read(self, client: NbdClient, known: Known | None, changed: int | None, content: tuple[str, ...]) -> Known:
        """Store what is new of a volume."""
        size = client.size
        if known is not None and changed is not None:
            runs = changed_runs(client.extents(), size, changed, known.difference)
            if data_clusters(runs) <= max(_FULL_ANYWAY, _LARGEST_DIFFERENCE * known.clusters):
                layers = (known.layers[0], self._store(size, runs, client))
                return Known(size, content, layers, known.clusters, tuple(runs))
        runs = full_runs(client.extents(), size)
        return Known(size, content, (self._store(size, runs, client),), data_clusters(runs))

    def _store(self, size: int, runs: list[Run], client: NbdClient) -> LayerRef:
        name, digest, length = f"layer-{secrets.token_hex(8)}", hashlib.sha256(), 0

        def counted() -> Iterator[bytes | bytearray]:
            nonlocal length
            for piece in stream(size, runs, client.read):
                digest.update(piece)
                length += len(piece)
                self._progress(len(piece))
                yield piece

        self._borg.create(name, "", counted())
        self.fresh += length
        return LayerRef(name, digest.hexdigest(), length)


def _prune(repository: Repository, keep: Keep) -> None:
    listing = repository.listing()
    repository.prune(listing, repository.to_prune(listing, keep))


def main() -> int:
    """Make the backup; 0 when it is complete."""
    given = order()
    repository = Repository(Path(given["repository"]), base64.b64decode(given["passphrase"]), Path(given["state"]))
    repository.borg.load_ahead()  # while the volumes are looked at
    try:
        with repository.held():
            creation = Creation(repository, repository.memory(), Progress())
            made = creation.run(base64.b64decode(given["store"]), given["files"], int(given["qubes"]))
            keep = keep_from(given["keep"], "keep")
            if keep:
                _prune(repository, keep)
    except (CasemateError, OSError) as error:
        say(error=str(error) if isinstance(error, CasemateError) else f"{error.filename}: {error.strerror}")
        return 1
    finally:
        repository.borg.close()
    say(done=creation.fresh, id=made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
