"""Snapshots: a running qube as it is now, kept under a name; disposables go on from it whenever somebody wants one.

::

    take(QUBE, NAME) ─▶ a copy as for a fork ─▶ its memory too is written out ─▶ STATE/snapshots/KEY/
    resume(NAME, n)  ─▶ n disposables with the settings that the qube had     ─▶ each starts from the snapshot

In the directory are ``memory`` and ``devices`` (host/guest_memory.py) and ``snapshot.json``; layers of disks lie in
their pools under the key. A snapshot is complete when its directory is there, and stays until it is dropped, whatever
becomes of its qube. Until then its directory is that of a fork's copy, which a daemon that finds it removes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.engine.fork_settings import ForkSettings
from casemate.engine.forks import MOST as MOST_AT_ONCE
from casemate.engine.forks import Forks
from casemate.engine.operations import OperationLocks
from casemate.engine.warm_image import WarmImage
from casemate.engine.warm_images import RESERVE
from casemate.host import guest_memory
from casemate.host.files import free_bytes, fsync_dir, fsync_file, remove_tree, replace_file
from casemate.host.hypervisor import Hypervisor
from casemate.settings import Settings
from casemate.storage.pools import Pools
from casemate.store import order
from casemate.wire.errors import CasemateError, HypervisorError, QubeError, ValueInvalidError, printable

log = logging.getLogger(__name__)

MOST = 256
"""Limit of snapshots: kept at the same time."""
_ABOUT = "snapshot.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_GONE = ".gone-"
"""Prefix of the directory of a snapshot that is being dropped."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One that is complete. ``made``: seconds since the epoch; ``bytes``: those of memory and devices on disk."""

    name: str
    key: str
    directory: Path
    pools: tuple[str, ...]
    made: float
    bytes: int
    settings: ForkSettings

    @property
    def qube(self) -> str:
        """The qube that it was taken of."""
        return self.settings.qube

    @property
    def base(self) -> str:
        """The disposable template that what goes on from it is based on."""
        return self.settings.base


class Snapshots:
    """Owns the directory of snapshots."""

    def __init__(self, settings: Settings, hypervisor: Hypervisor, pools: Pools, forks: Forks) -> None:
        self._hypervisor = hypervisor
        self._pools = pools
        self._forks = forks
        self._directory = settings.state / "snapshots"
        self._known: dict[str, Snapshot] = {}
        self._locks = OperationLocks(order.SNAPSHOT)
        """One thing at a time is done with a name: a resume must not find its files dropped. Copies and starts take
        the locks of qubes meanwhile."""

    def open(self) -> set[str]:
        """Read which there are, and finish what an earlier daemon began to drop; the keys of all that are kept.

        One that cannot be read keeps its files: they are somebody's data. It is told of in the log.
        """
        kept = set()
        for path in sorted(self._directory.iterdir()) if self._directory.is_dir() else []:
            if path.name.startswith("."):
                remove_tree(path)
                continue
            kept.add(path.name)
            try:
                snapshot = _read(path)
                self._known[snapshot.name] = snapshot
            except (OSError, ValueError, KeyError, TypeError, AttributeError, CasemateError) as error:
                log.error("snapshot %s cannot be read: %s", path, printable(str(error)))
        return kept

    def list(self) -> list[Snapshot]:
        """All of them, oldest first."""
        return sorted(self._known.values(), key=lambda snapshot: snapshot.made)

    async def take(self, qube: str, name: str) -> Snapshot:
        """Keep a running qube as it is now under a name; it goes on. QubeError where it cannot be copied, or the name
        is taken."""
        if not _NAME.fullmatch(name):
            raise ValueInvalidError(
                f"{printable(name, 80)!r} is no name of a snapshot: letters, digits, '_', '.' and '-', at most 63"
            )
        async with self._locks[name]:
            if name in self._known:
                raise QubeError(f"There is a snapshot {name} already, of {self._known[name].qube}")
            if len(self._known) >= MOST:
                raise QubeError(f"There are {MOST} snapshots, which is the most")
            copy, settings = await self._forks.copy(qube)
            try:
                snapshot = await self._keep(copy, settings, name)
            except BaseException:
                await self._forks.drop(copy)
                raise
            await self._hypervisor.release_image(copy.directory)
            self._known[name] = snapshot
            return snapshot

    async def _keep(self, copy: WarmImage, settings: ForkSettings, name: str) -> Snapshot:
        """Write what is not on disk yet, then give the directory its place."""
        size = int(settings.properties["memory"]) << 20
        about = {"name": name, "made": time.time(), "pools": list(copy.pools), "settings": settings.to_json()}
        complete = self._directory / copy.key
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if free_bytes(self._directory) < RESERVE + size:
                raise HypervisorError(f"{self._directory} has too little room for a snapshot of {size >> 20} MiB")
            await self._hypervisor.keep_fork(copy.directory)
            for pool in copy.pools:
                await self._pools.named(pool).settle_image(copy.key)
            await asyncio.to_thread(_write_out, copy.directory, about)
            copy.directory.rename(complete)
            fsync_dir(self._directory)
        except OSError as error:
            remove_tree(complete)
            raise HypervisorError(f"The snapshot of {settings.qube} cannot be kept: {error.strerror}") from error
        return _read(complete)

    async def resume(self, name: str, count: int = 1, creator: str = "dom0") -> Sequence[str]:
        """Make ``count`` running disposables that go on from a snapshot; their names. All or none."""
        if not 1 <= count <= MOST_AT_ONCE:
            raise QubeError(f"1 to {MOST_AT_ONCE} disposables can go on from a snapshot at once")
        async with self._locks[name]:
            snapshot = self._named(name)
            copy = WarmImage(
                key=snapshot.key, directory=snapshot.directory, template=snapshot.qube, pools=snapshot.pools,
                made=snapshot.made, used=time.time(), bytes=snapshot.bytes, is_fork=True,
            )  # fmt: skip
            try:
                return await self._forks.start(copy, snapshot.settings, count, creator)
            finally:
                await self._hypervisor.release_image(snapshot.directory)

    async def drop(self, name: str) -> None:
        """Remove a snapshot; what went on from it runs on."""
        async with self._locks[name]:
            snapshot = self._named(name)
            gone = snapshot.directory.with_name(f"{_GONE}{snapshot.key}")
            try:
                snapshot.directory.rename(gone)
            except OSError as error:
                raise HypervisorError(f"The snapshot {name} cannot be removed: {error.strerror}") from error
            del self._known[name]
            remove_tree(gone)
            for pool in snapshot.pools:
                try:
                    await self._pools.named(pool).drop_image(snapshot.key)
                except CasemateError as error:
                    log.warning("snapshot %s: %s", name, printable(str(error)))

    def _named(self, name: str) -> Snapshot:
        snapshot = self._known.get(name)
        if snapshot is None:
            raise ValueInvalidError(f"There is no snapshot {printable(name, 80)!r}")
        return snapshot


def _write_out(directory: Path, about: Mapping[str, Any]) -> None:
    """Make the files of a snapshot survive a power failure, the one that names it last."""
    for name in (guest_memory.MEMORY, guest_memory.DEVICES):
        fsync_file(directory / name)
    replace_file(directory / _ABOUT, json.dumps(about).encode())


def _read(path: Path) -> Snapshot:
    about = json.loads((path / _ABOUT).read_text())
    files = [(path / name).stat() for name in (guest_memory.MEMORY, guest_memory.DEVICES)]
    return Snapshot(
        name=str(about["name"]),
        key=path.name,
        directory=path,
        pools=tuple(map(str, about["pools"])),
        made=float(about["made"]),
        bytes=sum(status.st_blocks for status in files) * 512,
        settings=ForkSettings.from_json(about["settings"]),
    )
