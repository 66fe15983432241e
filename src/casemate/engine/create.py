"""Making, cloning and removing qubes: volumes on disk and the store's entry, both or neither."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

from casemate.engine.bus import Bus
from casemate.engine.intents import Intent, Intents
from casemate.engine.lifecycle import Lifecycle
from casemate.engine.machine import TARGETS
from casemate.host.hypervisor import Hypervisor, MachineSpec, PowerState
from casemate.model.domain import Domain
from casemate.model.properties import Stored
from casemate.model.system import System
from casemate.model.volumes import Volume
from casemate.storage.pool import Pools
from casemate.store.store import Store
from casemate.wire.errors import (
    NotHaltedError,
    QubeError,
    StorageError,
    ValueInvalidError,
    VolumeNotFoundError,
)

DISPOSABLE_NAMES = 9999
QUARANTINE_SECONDS = 24 * 3600.0
"""How long the name of a removed disposable is not used again, so that policy and logs never hit a successor."""


class Creator:
    """Creates and removes qubes. Lock order: the qube's operation lock, then the store."""

    def __init__(
        self,
        store: Store,
        hypervisor: Hypervisor,
        pools: Pools,
        lifecycle: Lifecycle,
        bus: Bus,
        intents: Intents,
        specify: Callable[[Domain], MachineSpec | None],
    ) -> None:
        self._store = store
        self._hypervisor = hypervisor
        self._pools = pools
        self._lifecycle = lifecycle
        self._bus = bus
        self._intents = intents
        self._specify = specify
        self._retired: dict[str, float] = {}

    async def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None = None,
        pools: Mapping[str, str] | None = None,
        *,
        images: Mapping[str, Path] | None = None,
        properties: Mapping[str, Stored] | None = None,
        features: Mapping[str, str] | None = None,
        dispid: int | None = None,
        creator: str = "dom0",
    ) -> Domain:
        """A new halted qube. ``images`` names raw images that volumes begin with (a template's root)."""
        uuid = uuid4()

        def add(system: System) -> Domain:
            domain = system.add(
                klass, name, uuid=uuid, label=label, template=template, pools=pools,
                dispid=dispid, creator=creator, properties=properties,
            )  # fmt: skip
            for key, value in (features or {}).items():
                domain.features[key] = value
            return domain

        async with self._lifecycle.locks[name]:
            # A rehearsal on a copy tells what will be needed, and refuses what would be refused at the end.
            planned = add(self._store.snapshot().copy())
            volumes = [v for v in planned.configured_volumes() if _stored_on_disk(v)]
            intent = _intent("create", planned, volumes)
            self._intents.write(intent)
            try:
                for volume in volumes:
                    image = (images or {}).get(volume.name)
                    pool = self._pools.of(volume)
                    if image is not None:
                        await pool.import_image(volume, image)
                    else:
                        await pool.create(volume)
                domain = await asyncio.to_thread(self._commit, add)
            except BaseException:
                for volume in volumes:
                    await self._pools.of(volume).remove(volume)
                self._intents.forget(intent)
                raise
            self._intents.forget(intent)
            # Defined now, so that its UUID is its own from the beginning; nothing runs.
            spec = self._specify(domain)
            if spec is not None:
                await self._hypervisor.define(spec)
            self._bus.say(name, "domain-create-on-disk")
            return domain

    def _commit(self, add: Callable[[System], Domain]) -> Domain:
        with self._store.write() as transaction:
            return add(transaction.system)

    async def remove(self, name: str) -> None:
        """Remove a halted qube with all its volumes. Refused while anything refers to it."""
        async with self._lifecycle.locks[name]:
            domain = self._lifecycle.domain(name)
            if self._lifecycle.states.of(name) is not PowerState.HALTED:
                raise NotHaltedError(f"{name} is running")
            self._bus.say("", "domain-pre-delete", vm=name)
            volumes = [v for v in domain.configured_volumes() if v.name in TARGETS]
            intent = _intent("remove", domain, volumes)
            self._intents.write(intent)
            try:
                await asyncio.to_thread(self._forget, name)
            except BaseException:
                self._intents.forget(intent)
                raise
            for volume in volumes:
                pool = self._pools.of(volume)
                await pool.stop(volume)
                await pool.remove(volume)
            await self._hypervisor.undefine(domain.uuid)
            self._intents.forget(intent)

    def _forget(self, name: str) -> None:
        with self._store.write() as transaction:
            transaction.system.remove(name)

    async def create_disposable(self, template: str | None, creator: str = "dom0") -> str:
        """A new halted disposable of the disposable template (None: the default one); returns its name."""
        system = self._store.snapshot()
        if template is None:
            default = system.default_dispvm
            if default is None:
                raise QubeError("There is no default disposable template: name one, or set default_dispvm")
            template = default.name
        base = system.domains[template]
        if not getattr(base, "template_for_dispvms", False):
            raise QubeError(f"{template} is not a template for disposables (property template_for_dispvms)")
        for _attempt in range(100):
            dispid = 1 + secrets.randbelow(DISPOSABLE_NAMES)
            name = f"disp{dispid}"
            if name not in system.domains and time.monotonic() - self._retired.get(name, -1e9) > QUARANTINE_SECONDS:
                break
        else:
            raise QubeError("No free name for a disposable")
        self._retired[name] = time.monotonic()
        await self.create(
            "DispVM", name, base.label.name, template,
            dispid=dispid, creator=creator, properties={"auto_cleanup": True},
        )  # fmt: skip
        return name

    async def clone_volume(self, source: str, target: str, volume: str) -> None:
        """Replace a volume of a halted qube by a copy of another halted qube's."""
        if source == target:
            raise ValueInvalidError("source and target are the same qube")
        first, second = sorted((source, target))
        async with self._lifecycle.locks[first], self._lifecycle.locks[second]:
            one, other = (self._halted(name).volumes.get(volume) for name in (source, target))
            if one is None or other is None:
                raise VolumeNotFoundError(f"{source} or {target} has no volume {volume}")
            if not _stored_on_disk(one) or not _stored_on_disk(other):
                raise StorageError(f"volume {volume} of {source} is not kept, there is nothing to copy")
            if one.pool != other.pool:
                raise StorageError("volumes of different pools cannot be cloned")
            await self._pools.of(other).clone(one, other)
            await asyncio.to_thread(self._resize_entry, target, volume, one.size)

    def _resize_entry(self, name: str, volume: str, size: int) -> None:
        with self._store.write() as transaction:
            domain = transaction.system.domains[name]
            domain.set_volume(replace(domain.volume(volume), size=size))

    async def resize_volume(self, name: str, volume: str, size: int) -> None:
        """Make a volume of a halted qube larger; ``size`` in bytes."""
        async with self._lifecycle.locks[name]:
            found = self._halted(name).volume(volume)
            if size < found.size:
                raise StorageError(f"volume {volume} of {name} cannot become smaller than {found.size} bytes")
            if _stored_on_disk(found):
                await self._pools.of(found).resize(found, size)
            await asyncio.to_thread(self._resize_entry, name, volume, size)

    async def clear_volume(self, name: str, volume: str) -> None:
        """Make a kept volume of a halted qube empty, as it was when it was new."""
        async with self._lifecycle.locks[name]:
            found = self._halted(name).volume(volume)
            if not _stored_on_disk(found):
                raise StorageError(f"volume {volume} of {name} is not kept, there is nothing to clear")
            await self._pools.of(found).create(found)

    async def import_volume(self, name: str, volume: str, image: Path, size: int) -> None:
        """Replace a kept volume of a halted qube by a raw image of ``size`` bytes."""
        async with self._lifecycle.locks[name]:
            found = self._halted(name).volume(volume)
            if not _stored_on_disk(found):
                raise StorageError(f"volume {volume} of {name} is not kept, nothing can be put into it")
            await self._pools.of(found).import_image(replace(found, size=max(size, found.size)), image)
            if size > found.size:
                await asyncio.to_thread(self._resize_entry, name, volume, size)

    async def revert_volume(self, name: str, volume: str, revision: str) -> None:
        """Make a kept volume of a halted qube as it was; RevisionNotFoundError where it was never so."""
        async with self._lifecycle.locks[name]:
            found = self._halted(name).volume(volume)
            if not _stored_on_disk(found):
                raise StorageError(f"volume {volume} of {name} is not kept, it has no older states")
            await self._pools.of(found).revert(found, revision)

    def _halted(self, name: str) -> Domain:
        if self._lifecycle.states.of(name) is not PowerState.HALTED:
            raise NotHaltedError(f"{name} is running")
        return self._lifecycle.domain(name)

    async def clean_up(self) -> None:
        """Finish or take back what a killed daemon was in the middle of."""
        for intent in self._intents.left_over():
            stored = self._store.snapshot().domains.get(intent.name)
            if stored is None or str(stored.uuid) != intent.uuid:
                for pool, vid in intent.volumes:
                    volume = Volume(name=vid.rpartition("/")[2], pool=pool, vid=vid)
                    await self._pools.of(volume).stop(volume)
                    await self._pools.of(volume).remove(volume)
                await self._hypervisor.undefine(UUID(intent.uuid))
            self._intents.forget(intent)


def _stored_on_disk(volume: Volume) -> bool:
    """True for a volume that exists while the qube is halted."""
    return volume.save_on_stop and volume.name in TARGETS


def _intent(kind: str, domain: Domain, volumes: list[Volume]) -> Intent:
    return Intent(kind, domain.name, str(domain.uuid), tuple((v.pool, v.vid) for v in volumes))
