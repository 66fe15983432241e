"""What a storage pool does for the engine, and which pool a volume lies in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from casemate.host.files import room
from casemate.host.process import Runner
from casemate.model.system import PoolConfig
from casemate.model.volumes import Volume
from casemate.settings import Settings
from casemate.storage.qcow2 import Qcow2Pool
from casemate.store.store import Store
from casemate.wire.errors import PoolNotFoundError, printable


class Owner(Protocol):
    """The user and group that run a qube's machine."""

    @property
    def uid(self) -> int:
        """User id."""

    @property
    def gid(self) -> int:
        """Group id, that of all qubes of this state."""


@dataclass(frozen=True, slots=True)
class Account:
    """An Owner."""

    uid: int
    gid: int


class Source(Protocol):
    """An image as a machine opens it."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def format(self) -> str:
        """Its format; never guessed."""

    @property
    def readonly(self) -> bool:
        """True when the machine must not write it."""

    @property
    def backing(self) -> tuple[tuple[Path, str], ...]:
        """What the file is a layer over, nearest first: (file, format)."""

    @property
    def scratch(self) -> bool:
        """True for what is thrown away when the machine ends."""

    @property
    def own_layers(self) -> bool:
        """True when the layers below are the qube's alone."""


class Pool(Protocol):
    """Keeps volumes. Every method is idempotent and undoes itself when it fails; sizes are bytes.

    ``owner`` is the account that must be able to open what ``start`` returns (None: we run as that user ourselves).
    """

    def path(self, volume: Volume) -> Path:
        """Where the volume itself lies."""

    def has_left_overs(self, volume: Volume) -> bool:
        """True while something stands for the volume that ``stop`` would take away."""

    async def create(self, volume: Volume) -> None:
        """A new volume; a private one with an empty file system."""

    async def import_image(self, volume: Volume, source: Path) -> None:
        """A new volume with the content of a raw image."""

    async def clone(self, source: Volume, target: Volume) -> None:
        """Replace ``target`` by a copy of ``source``; neither is in use."""

    async def start(self, volume: Volume, owner: Owner | None, shared: bool) -> Source:
        """Make the volume ready for a machine. ``shared``: others are based on it, even while it runs."""

    async def stop(self, volume: Volume) -> None:
        """Give it back: what is not kept is thrown away. Also after a crash, and when it was never started."""

    async def remove(self, volume: Volume) -> None:
        """Remove the volume and everything that belongs to it."""

    def revisions(self, volume: Volume) -> list[str]:
        """The older states that the volume can go back to, oldest first."""

    async def revert(self, volume: Volume, revision: str) -> None:
        """Make a volume that is not in use as it was; RevisionNotFoundError."""

    def is_outdated(self, volume: Volume) -> bool:
        """Whether a machine runs on an older state of the volume's origin."""

    async def resize(self, volume: Volume, size: int) -> None:
        """Make it larger."""

    async def usage(self, volume: Volume) -> int:
        """Bytes that it takes on disk."""

    async def verify(self, volume: Volume) -> None:
        """StorageError unless it is there and is a file of ours."""


class Pools:
    """The pools of the store, by the drivers that this host has."""

    def __init__(self, settings: Settings, runner: Runner, store: Store, group: int | None) -> None:
        self._settings = settings
        self._runner = runner
        self._store = store
        self._group = group
        self._made: dict[tuple[str, str, str], Pool] = {}

    def directory(self, config: PoolConfig) -> Path:
        """Where a pool's files are."""
        return Path(config.options.get("dir_path") or self._settings.state / "pools" / config.name)

    async def room(self, name: str) -> tuple[int, int] | None:
        """Size and used bytes of the file system that a pool lies on; None while there is no such directory."""
        directory = self.directory(self._store.snapshot().pool(name))
        return await asyncio.to_thread(room, directory)

    def of(self, volume: Volume) -> Pool:
        """The pool of a volume, PoolNotFoundError when the store has none of that name or the driver is not ours."""
        config = self._store.snapshot().pools.get(volume.pool)
        if config is None:
            raise PoolNotFoundError(f"No such pool: {printable(volume.pool)!r}")
        directory = str(self.directory(config))
        key = (volume.pool, config.driver, directory)
        if key not in self._made:
            if config.driver not in DRIVERS:
                raise PoolNotFoundError(f"Pool {volume.pool} has driver {config.driver}, which is not for this host")
            self._made[key] = DRIVERS[config.driver](Path(directory), self._runner, self._group)
        return self._made[key]


DRIVERS = {"qcow2": Qcow2Pool}
"""Storage drivers by their names in the store."""
