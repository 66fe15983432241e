"""Makes and removes qubes: volumes on the disk and the entry in the store, both or neither."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import UUID, uuid4

from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.accounts import Accounts
from casemate.engine.bus import Bus
from casemate.engine.journal import JournalEntry, OperationJournal
from casemate.engine.machine import TARGETS, machine_spec
from casemate.engine.operations import OperationLocks
from casemate.engine.power_table import Command, decide
from casemate.engine.states import States
from casemate.engine.volumes import is_kept
from casemate.host.hypervisor import Disk, Hypervisor, MachineSpec
from casemate.model.domain import Domain
from casemate.model.properties import Stored
from casemate.model.system import System
from casemate.model.volumes import Volume
from casemate.settings import Settings
from casemate.storage.pools import Pools
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.errors import CasemateError

log = logging.getLogger(__name__)


class Creator:
    """Creates and removes qubes. Owns the operation journal. Lock order: the qube's operation lock, then the store."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hypervisor: Hypervisor,
        pools: Pools,
        locks: OperationLocks,
        states: States,
        bus: Bus,
        journal: OperationJournal,
        accounts: Accounts,
        acceleration: AccelerationProbe,
    ) -> None:
        self._settings = settings
        self._store = store
        self._hypervisor = hypervisor
        self._pools = pools
        self._locks = locks
        self._states = states
        self._bus = bus
        self._journal = journal
        self._accounts = accounts
        self._acceleration = acceleration

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

        async with self._locks[name]:
            # Volumes are made before the transaction, because nothing slow may happen inside one. The same change on a
            # copy of the system says which volumes these are, and raises the errors that the transaction would raise.
            planned = add(self._store.snapshot().copy())
            volumes = [v for v in planned.configured_volumes() if is_kept(v)]
            entry = _entry("create", planned, volumes)
            self._journal.begin(entry)
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
                self._journal.end(entry)
                raise
            self._journal.end(entry)
            # libvirt refuses another machine of this UUID from now on. Nothing runs yet.
            spec = self._specify(domain)
            if spec is not None:
                await self._hypervisor.define(spec)
            self._bus.say(ev.DomainCreatedOnDisk(name))
            return domain

    def _commit(self, add: Callable[[System], Domain]) -> Domain:
        with self._store.write() as transaction:
            return add(transaction.system)

    async def remove(self, name: str) -> None:
        """Remove a halted qube with all its volumes. Refused while anything refers to it."""
        async with self._locks[name]:
            domain = self._store.snapshot().domains[name]
            decide(Command.REMOVE, name, self._states.of(name))
            self._bus.say(ev.DomainPreDelete(name))
            volumes = [v for v in domain.volumes.values() if v is not None and v.name in TARGETS]
            entry = _entry("remove", domain, volumes)
            self._journal.begin(entry)
            try:
                await asyncio.to_thread(self._remove_entry, name)
            except BaseException:
                self._journal.end(entry)
                raise
            for volume in volumes:
                pool = self._pools.of(volume)
                await pool.stop(volume)
                await pool.remove(volume)
            await self._hypervisor.undefine(domain.uuid)
            self._remove_logs(name)
            self._journal.end(entry)

    def _remove_logs(self, name: str) -> None:
        """Nothing tells of a qube that is gone; and disposables have many names."""
        for process in ("link", "uplink"):
            self._settings.qube_log(process, name).unlink(missing_ok=True)

    def _remove_entry(self, name: str) -> None:
        with self._store.write() as transaction:
            transaction.system.remove(name)

    def _specify(self, domain: Domain) -> MachineSpec | None:
        """The machine as it will be, for its definition at creation; None for classes that are no machines."""
        if domain.klass in ("AdminVM", "RemoteVM") or not domain.kernel:
            return None
        disks = {
            name: Disk(target=TARGETS[name], serial=name, path=pool.path(volume), format=pool.format)
            for name, volume in domain.volumes.items()
            if volume is not None and name in TARGETS
            for pool in (self._pools.of(volume),)
        }
        found = self._acceleration.found
        return machine_spec(
            self._settings, domain, disks, found.kind if found is not None else "tcg", self._accounts.of(domain)
        )

    async def clean_up(self) -> None:
        """Complete or take back what a killed daemon had in its journal. What fails stays there for the next daemon."""
        for entry in self._journal.unfinished():
            try:
                await self._clean_up_after(entry)
            except CasemateError as error:
                log.error("the %s of %s is not cleaned up yet: %s", entry.kind, entry.name, error)
            else:
                self._journal.end(entry)

    async def _clean_up_after(self, entry: JournalEntry) -> None:
        """Remove the volumes of a qube that the store does not have: a creation that was not saved yet, or a removal
        that was saved already. In both cases the store decides, and a qube that it has is complete."""
        stored = self._store.snapshot().domains.get(entry.name)
        if stored is not None and str(stored.uuid) == entry.uuid:
            return
        for pool, vid in entry.volumes:
            volume = Volume(name=vid.rpartition("/")[2], pool=pool, vid=vid)
            await self._pools.of(volume).stop(volume)
            await self._pools.of(volume).remove(volume)
        await self._hypervisor.undefine(UUID(entry.uuid))
        if stored is None:
            self._remove_logs(entry.name)


def _entry(kind: str, domain: Domain, volumes: list[Volume]) -> JournalEntry:
    return JournalEntry(kind, domain.name, str(domain.uuid), tuple((v.pool, v.vid) for v in volumes))
