"""What is done to single volumes of qubes: copy, enlarge, empty, replace, go back, measure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from casemate.engine.guests import Guests
from casemate.engine.machine import TARGETS
from casemate.engine.operations import OperationLocks
from casemate.engine.power_table import Command, decide
from casemate.engine.spool import spooled
from casemate.engine.states import States
from casemate.host.hypervisor import Hypervisor, PowerState
from casemate.model.domain import Domain
from casemate.model.volumes import Volume
from casemate.storage.pools import Pools
from casemate.storage.saved_state import Served
from casemate.store.store import Store
from casemate.wire.errors import DisconnectedError, NotHaltedError, StorageError, ValueInvalidError, VolumeNotFoundError

GROW_SECONDS = 60.0
"""Seconds that a guest has to grow a file system. The kernel writes new tables only when it needs them, so that it is
usually done within one."""


class Volumes:
    """Changes volumes under the qube's operation lock; the file first, then its entry in the store.

    A running qube's volume can be enlarged and copied (its last saved state); all else wants a halted qube.
    """

    def __init__(
        self,
        store: Store,
        pools: Pools,
        locks: OperationLocks,
        states: States,
        hypervisor: Hypervisor,
        guests: Guests,
    ) -> None:
        self._store = store
        self._pools = pools
        self._locks = locks
        self._states = states
        self._hypervisor = hypervisor
        self._guests = guests

    async def clone(self, source: str, target: str, volume: str) -> None:
        """Replace a volume of a halted qube by a copy of another qube's; a running one's last saved state."""
        if source == target:
            raise ValueInvalidError("source and target are the same qube")
        first, second = sorted((source, target))
        async with self._locks[first], self._locks[second]:
            decide(Command.COPY, source, self._states.of(source))
            running = self._states.of(source) is not PowerState.HALTED
            one = self._store.snapshot().domains[source].volumes.get(volume)
            other = self._halted(target).volumes.get(volume)
            if one is None or other is None:
                raise VolumeNotFoundError(f"{source} or {target} has no volume {volume}")
            if not is_kept(one) or not is_kept(other):
                raise StorageError(f"volume {volume} of {source} is not kept, there is nothing to copy")
            if one.pool == other.pool:
                await self._pools.of(other).clone(one, other, running)
            else:
                await self._copy_between_pools(one, other, running)
            await asyncio.to_thread(self._record_size, target, volume, one.size)

    async def _copy_between_pools(self, source: Volume, target: Volume, running: bool) -> None:
        """By a raw image, which every driver can write and read; holes stay holes."""
        with spooled(self._store.path.parent, "clone") as image:
            await self._pools.of(source).export(source, image, running)
            await self._pools.of(target).import_image(replace(target, size=max(source.size, target.size)), image)

    async def export(self, name: str, volume: str, target: Path) -> None:
        """Write a kept volume as a raw image into an empty file; of a running qube, its last saved state."""
        async with self._locks[name]:
            decide(Command.COPY, name, self._states.of(name))
            running = self._states.of(name) is not PowerState.HALTED
            found = self._store.snapshot().domains[name].volume(volume)
            if not is_kept(found):
                raise StorageError(f"volume {volume} of {name} is not kept, there is nothing to write")
            await self._pools.of(found).export(found, target, running)

    @asynccontextmanager
    async def serve(self, name: str, volume: str, address: Path, since: Sequence[str]) -> AsyncIterator[Served]:
        """Let a kept volume be read over NBD on a new socket; of a running qube, its last saved state. See ``Pool``.

        The qube is neither started nor stopped meanwhile: both may merge the files that are read.
        """
        async with self._locks[name]:
            decide(Command.COPY, name, self._states.of(name))
            running = self._states.of(name) is not PowerState.HALTED
            found = self._store.snapshot().domains[name].volume(volume)
            if not is_kept(found):
                raise StorageError(f"volume {volume} of {name} is not kept, there is nothing to read")
            async with self._pools.of(found).serve(found, address, since, running) as served:
                yield served

    async def resize(self, name: str, volume: str, size: int) -> None:
        """Make a volume larger; ``size`` in bytes. A running qube grows its file system, a halted one at its start."""
        async with self._locks[name]:
            decide(Command.RESIZE, name, self._states.of(name))
            found = self._store.snapshot().domains[name].volume(volume)
            if found.snap_on_start and not found.save_on_stop:
                raise StorageError(
                    f"volume {volume} of {name} is made anew from another at each start, with that one's size: "
                    "resize the volume that it comes from"
                )
            if size < found.size:
                raise StorageError(f"volume {volume} of {name} cannot become smaller than {found.size} bytes")
            if self._states.of(name) is PowerState.HALTED:
                if is_kept(found):
                    await self._pools.of(found).resize(found, size)
                await asyncio.to_thread(self._record_size, name, volume, size)
            else:
                await self._resize_running(name, found, size)

    async def _resize_running(self, name: str, volume: Volume, size: int) -> None:
        """QEMU enlarges the file that it has open, then the guest the file system on it."""
        if not is_kept(volume):
            raise NotHaltedError(
                f"volume {volume.name} of {name} is made anew at each start: stop the qube to resize it"
            )
        domain = self._store.snapshot().domains[name]
        await self._hypervisor.resize_disk(domain.uuid, TARGETS[volume.name], size)
        await asyncio.to_thread(self._record_size, name, volume.name, size)
        try:
            data = f"{volume.name}\n".encode("ascii")
            status = await self._guests.run(name, "qubes.ResizeDisk", "root", GROW_SECONDS, data)
            why = f"its service qubes.ResizeDisk ended with status {status}" if status else ""
        except (DisconnectedError, TimeoutError) as error:
            why = str(error) or f"it did not answer within {GROW_SECONDS:g} s"
        if why:
            raise StorageError(
                f"volume {volume.name} of {name} has {size} bytes now, but the qube did not grow the file system on it "
                f"({why}); it will at its next start"
            )

    async def clear(self, name: str, volume: str) -> None:
        """Make a kept volume of a halted qube empty, as it was when it was new."""
        async with self._locks[name]:
            found = self._kept(name, volume, "there is nothing to clear")
            await self._pools.of(found).create(found)

    async def import_image(self, name: str, volume: str, image: Path, size: int) -> None:
        """Replace a kept volume of a halted qube by a raw image of ``size`` bytes."""
        async with self._locks[name]:
            found = self._kept(name, volume, "nothing can be put into it")
            await self._pools.of(found).import_image(replace(found, size=max(size, found.size)), image)
            if size > found.size:
                await asyncio.to_thread(self._record_size, name, volume, size)

    async def revert(self, name: str, volume: str, revision: str) -> None:
        """Put a kept volume of a halted qube back to an older state; RevisionNotFoundError for one it has not."""
        async with self._locks[name]:
            found = self._kept(name, volume, "it has no older states")
            await self._pools.of(found).revert(found, revision)

    async def usage(self, name: str, volume: str) -> int:
        """Bytes that a volume takes on the disk."""
        found = self._store.snapshot().domains[name].volume(volume)
        return await self._pools.of(found).usage(found) if volume in TARGETS else 0

    def revisions(self, name: str, volume: str) -> list[str]:
        """The older states of a volume, oldest first."""
        found = self._store.snapshot().domains[name].volume(volume)
        return self._pools.of(found).revisions(found) if is_kept(found) else []

    def is_outdated(self, name: str, volume: str) -> bool:
        """Whether a qube runs on a state of its template that is not the newest."""
        found = self._store.snapshot().domains[name].volume(volume)
        running = self._states.of(name) is not PowerState.HALTED
        return running and volume in TARGETS and self._pools.of(found).is_outdated(found)

    def _halted(self, name: str) -> Domain:
        decide(Command.REPLACE, name, self._states.of(name))
        return self._store.snapshot().domains[name]

    def _kept(self, name: str, volume: str, consequence: str) -> Volume:
        """A volume of a halted qube that outlives a stop; the error for another one says what follows."""
        found = self._halted(name).volume(volume)
        if not is_kept(found):
            raise StorageError(f"volume {volume} of {name} is not kept, {consequence}")
        return found

    def _record_size(self, name: str, volume: str, size: int) -> None:
        with self._store.write() as transaction:
            domain = transaction.system.domains[name]
            domain.set_volume(replace(domain.volume(volume), size=size))


def is_kept(volume: Volume) -> bool:
    """True for a volume that exists on the disk while the qube is halted."""
    return volume.save_on_stop and volume.name in TARGETS
