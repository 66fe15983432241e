"""A repository: snapshots and layers in archives of borg's, who may work on it, what is removed and what is damaged."""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from casemate.backup.errors import BackupError, DamagedError
from casemate.backup.incremental import memory, retention
from casemate.backup.incremental.borg import Borg, LockedError, NoRepositoryError, Stream
from casemate.backup.incremental.retention import Keep
from casemate.backup.incremental.snapshot import (
    LAYER_NAME,
    MAX_SNAPSHOT,
    SNAPSHOT,
    LayerRef,
    Snapshot,
    Summary,
    is_id,
    parse,
    parse_summary,
)

_LOCK = "casemate.lock"
_CONFIG_BYTES = 65536
_READ = 4 << 20
_STRAY = re.compile(r"(?:layer-[0-9a-f]{16}|backup-[0-9]{8}-[0-9]{6})\.checkpoint(?:\.[0-9]+)?")


class NoSuchBackupError(BackupError):
    """The repository has no backup of that id."""


@dataclass(slots=True)
class Listing:
    """What a repository has. ``snapshots`` are oldest first; the rest are names of archives.

    ``strays`` are unfinished archives, which borg makes while it works. ``unknown`` are snapshots that cannot be
    understood, as a later version of ours may write them. Whatever else is there is somebody else's and left alone.
    """

    snapshots: list[Summary] = field(default_factory=list)
    layers: set[str] = field(default_factory=set)
    strays: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def unused(self) -> list[str]:
        """Archives that no snapshot needs: of removed snapshots, and of runs that were broken off."""
        needed = {layer for one in self.snapshots for layer in one.layers}
        return sorted(self.layers - needed) + self.strays


class Repository:
    """One repository. ``state`` is the directory ``STATE/backup``, for borg's cache and our memory of repositories."""

    def __init__(self, place: Path, passphrase: bytes, state: Path) -> None:
        self.place = place
        self.borg = Borg(place, passphrase, state / "borg")
        self._memory = state / "repositories"

    # -- who works on it

    def identity(self) -> str:
        """The repository's id, which borg keeps in a plain file. NoRepositoryError."""
        config = configparser.ConfigParser(interpolation=None)
        try:
            with open(self.place / "config", encoding="utf-8") as file:
                config.read_string(file.read(_CONFIG_BYTES))
            found = config["repository"]["id"]
        except (OSError, ValueError, KeyError, configparser.Error) as error:
            if isinstance(error, PermissionError):
                raise NoRepositoryError(f"You may not read {self.place}") from None
            raise NoRepositoryError(
                f"There is no repository in {self.place}; `casemate backup init` makes one"
            ) from None
        if len(found) != 64 or not set(found) <= set("0123456789abcdef"):
            raise NoRepositoryError(f"{self.place}/config is no configuration of a repository")
        return found

    @contextlib.contextmanager
    def held(self, shared: bool = False) -> Iterator[None]:
        """Keep others from changing the set of archives; LockedError.

        borg has locks for each of its runs. Ours is for several runs together: a new snapshot must find the layers that
        it names, and layers of a run that goes on are not yet named by any. The kernel gives it up with the process.
        """
        self.identity()
        flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        try:
            fd = os.open(self.place / _LOCK, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if shared:
                yield  # it was never locked, or is another user's: reading it changes nothing
                return
            raise BackupError(f"{self.place} cannot be written to: {error.strerror}") from None
        try:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(
                    f"{self.place} is in use: a backup, restore, prune or check of it is running"
                ) from None
            yield
        finally:
            os.close(fd)

    def stamp(self) -> str:
        """The number of the last transaction, as the names of borg's own files tell it; "" when they do not."""
        found = [name.rpartition(".")[2] for name in os.listdir(self.place) if name.startswith("index.")]  # noqa: PTH208
        numbers = [int(number) for number in found if number.isdecimal()]
        return str(max(numbers)) if numbers else ""

    def memory(self) -> memory.Memory:
        """What this state remembers of the repository."""
        return memory.load(self._memory, self.identity())

    # -- what it has

    def listing(self) -> Listing:
        """What there is. Also tells a wrong passphrase."""
        found = Listing()
        for archive in self.borg.archives():
            summary = parse_summary(archive.name, archive.comment)
            if summary is not None:
                found.snapshots.append(summary)
            elif _STRAY.fullmatch(archive.name):
                found.strays.append(archive.name)
            elif LAYER_NAME.fullmatch(archive.name):
                found.layers.add(archive.name)
            elif is_id(archive.name.removeprefix(SNAPSHOT)):
                found.unknown.append(archive.name)
        found.snapshots.sort(key=lambda one: one.id)
        return found

    def find(self, listing: Listing, wanted: str | None) -> Summary:
        """The snapshot of that id, or the newest; NoSuchBackupError."""
        if not listing.snapshots:
            raise NoSuchBackupError(f"There is no backup in {self.place} yet")
        if wanted is None:
            return listing.snapshots[-1]
        for one in listing.snapshots:
            if one.id == wanted:
                return one
        raise NoSuchBackupError(
            f"There is no backup {wanted!r} in {self.place}; `casemate backup list {self.place}` shows all"
        )

    def snapshot(self, summary: Summary) -> Snapshot:
        """A snapshot; DamagedError."""
        with self.borg.reading(f"{SNAPSHOT}{summary.id}") as stream:
            data = bytearray()
            while piece := stream.read(_READ):
                data += piece
                if len(data) > MAX_SNAPSHOT:
                    raise DamagedError(f"Backup {summary.id} is larger than any that was written")
        return parse(bytes(data), summary)

    # -- removing

    def to_prune(self, listing: Listing, keep: Keep) -> list[Summary]:
        """The snapshots that no rule keeps."""
        kept = retention.kept((one.time for one in listing.snapshots), keep)
        return [one for one in listing.snapshots if one.time not in kept]

    def prune(self, listing: Listing, doomed: list[Summary]) -> None:
        """Remove snapshots, then what nobody needs any more. Killed in between, the next call does the rest."""
        if listing.unknown:
            raise BackupError(
                f"{self.place} has backups that this version cannot read ({', '.join(listing.unknown[:3])}), so what "
                "they need is not known: nothing was removed"
            )
        if doomed:
            self.borg.delete([f"{SNAPSHOT}{one.id}" for one in doomed])
            listing.snapshots = [one for one in listing.snapshots if one not in doomed]
        if unused := listing.unused:
            self.borg.delete(unused)
        self.borg.compact()

    # -- damage

    def damaged_layers(
        self, snapshots: list[Snapshot], progress: Callable[[int], object] = lambda _count: None
    ) -> dict[str, str]:
        """Read every layer of these snapshots once; those that are not as they were written, and why."""
        found: dict[str, str] = {}
        for layer in {name: ref for one in snapshots for name, ref in one.layers.items()}.values():
            try:
                with self.reading(layer) as stream:
                    while piece := stream.read(_READ):
                        progress(len(piece))
            except DamagedError as error:
                found[layer.name] = str(error)
        return found

    @contextlib.contextmanager
    def reading(self, layer: LayerRef) -> Iterator[CheckedStream]:
        """The stream of a layer, which ends with DamagedError unless it is what was written."""
        with self.borg.reading(layer.name) as stream:
            yield CheckedStream(stream, layer)


class CheckedStream:
    """Hashes what is read, and compares at the end."""

    def __init__(self, stream: Stream, layer: LayerRef) -> None:
        self._stream = stream
        self._layer = layer
        self._hash = hashlib.sha256()

    def read(self, most: int) -> bytes:
        """The next bytes; none at the end. DamagedError there when they are not what was written."""
        data = self._stream.read(most)
        self._hash.update(data)
        if not data and self._hash.hexdigest() != self._layer.sha256:
            raise DamagedError(f"{self._layer.name} is not as it was written")
        return data


def age(summary: Summary) -> str:
    """When a snapshot was made, in the local time, for a person."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.time))
