"""Forks: a running qube becomes disposables that go on from where it is, with its memory, programs and files.

::

    fork(QUBE, n)
      agent stops all other programs ─▶ machine stands still ─▶ devices, memory, layers of disks are copied
        ─▶ machine goes on ─▶ programs go on                            (the qube has lost a moment)
      n disposables with its settings ─▶ each starts from the copy ─▶ its agent takes an identity of its own,
                                                                    then lets programs go on
      the copy is dropped; what the forks share of it stays for as long as they run

The copy is never on disk but for what was on disk already, unless it is kept as a snapshot (``snapshots.py``). Its
directory, ``STATE/warm/.fork-KEY``, has the name of the qube: a daemon that finds it lets that qube go on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from casemate.engine.devices import Devices
from casemate.engine.disposables import Disposables
from casemate.engine.firewall import Firewalls
from casemate.engine.fork_settings import ForkSettings
from casemate.engine.lifecycle import Lifecycle
from casemate.engine.links import Links
from casemate.engine.machine import TARGETS
from casemate.engine.operations import OperationLocks
from casemate.engine.states import States
from casemate.engine.warm_image import DIGITS, WarmImage, is_being_made
from casemate.engine.warm_images import WarmImages
from casemate.host.files import remove_tree, replace_file
from casemate.host.hypervisor import Hypervisor, PowerState
from casemate.model.domain import Domain
from casemate.settings import Settings
from casemate.storage.pools import Pools
from casemate.store.store import Store
from casemate.wire.errors import (
    CasemateError,
    DisconnectedError,
    HypervisorError,
    NotRunningError,
    QubeError,
    printable,
)

log = logging.getLogger(__name__)

MOST = 64
"""Limit of forks: made by one request."""
_AT_ONCE = 4
"""Forks of one request that start at the same time."""
_MARK = ".fork-"
_QUBE = "qube"
"""File of the copy's directory: the name of the qube that is copied."""
_FREEZE_SECONDS = 15.0


class Forks:
    """Owns the copies that are being made or used."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hypervisor: Hypervisor,
        states: States,
        locks: OperationLocks,
        links: Links,
        pools: Pools,
        lifecycle: Lifecycle,
        disposables: Disposables,
        devices: Devices,
        firewalls: Firewalls,
        images: WarmImages,
        free_memory: Callable[[], int],
    ) -> None:
        """``free_memory()``: what the host has left, in MiB."""
        self._store = store
        self._hypervisor = hypervisor
        self._states = states
        self._locks = locks
        self._links = links
        self._pools = pools
        self._lifecycle = lifecycle
        self._disposables = disposables
        self._devices = devices
        self._firewalls = firewalls
        self._images = images
        self._free_memory = free_memory
        self._directory = settings.state / "warm"

    async def fork(self, name: str, count: int = 1, creator: str = "dom0") -> list[str]:
        """Make ``count`` running disposables of a running qube; their names. All or none.

        QubeError for a qube that cannot be forked, with the reason; the qube itself goes on in every case.
        """
        if not 1 <= count <= MOST:
            raise QubeError(f"A qube can be forked 1 to {MOST} times at once")
        copy, settings = await self.copy(name)
        try:
            return await self.start(copy, settings, count, creator)
        finally:
            await self.drop(copy)

    async def start(self, copy: WarmImage, settings: ForkSettings, count: int, creator: str) -> list[str]:
        """Make ``count`` running disposables of a copy; their names. All or none."""
        made: list[str] = []
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one() -> None:
            async with slots:
                child = await self._create(settings, creator)
                made.append(child)
                await self._lifecycle.start(child, copy)

        try:
            async with asyncio.TaskGroup() as group:
                for _number in range(count):
                    group.create_task(one())
        except BaseException as error:
            for child in made:
                await self._disposables.end(child)
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from error
            raise
        return made

    # -- whether

    async def _base(self, domain: Domain) -> Domain:
        """What its forks are based on; QubeError where it cannot be forked."""
        name = domain.name
        if domain.klass == "DispVM":
            assert domain.template is not None, "a disposable has one"
            base = domain.template
        elif getattr(domain, "template_for_dispvms", False):
            base = domain
        else:
            raise QubeError(
                f"{name} is no template for disposables, so it can have no forks: set its property "
                "template_for_dispvms and start it anew"
            )
        if is_being_made(domain):
            raise QubeError(f"{name} is becoming a warm image, so it cannot be forked")
        if not self._images.are_possible(domain):
            why = self._images.why_not or "it always boots (docs/howto/disposables.md)"
            raise QubeError(f"{name} cannot be forked: {why}")
        for klass in ("block", "usb", "pci", "mic"):
            if await self._devices.attached(domain, klass):
                raise QubeError(f"{name} cannot be forked while a device is attached to it (qvm-{klass} detach)")
        # Its memory is copied once. What its forks write is their own, and cannot be known.
        if self._free_memory() < domain.memory:
            raise HypervisorError(f"The host has too little memory for forks of {name}")
        return base

    # -- the copy

    async def copy(self, name: str) -> tuple[WarmImage, ForkSettings]:
        """Copy a running qube, which goes on; the copy, which is the caller's to ``drop``, and what its forks take
        over besides."""
        domain = self._store.snapshot().domains[name]
        base, key = await self._base(domain), secrets.token_hex(DIGITS // 2)
        directory = self._directory / f"{_MARK}{key}"
        volumes = [volume for at, volume in domain.volumes.items() if volume is not None and at in TARGETS]
        copy = WarmImage(
            key=key, directory=directory, template=name, pools=tuple(sorted({volume.pool for volume in volumes})),
            made=time.time(), used=time.time(), bytes=0, is_fork=True,
        )  # fmt: skip
        async with self._locks[name]:
            if self._states.of(name) is not PowerState.RUNNING:
                raise NotRunningError(f"{name} does not run, so it cannot be forked")
            settings = ForkSettings.of(domain, base.name, self._firewalls.rules(domain))
            directory.mkdir(mode=0o700, parents=True)
            replace_file(directory / _QUBE, name.encode())
            try:
                await self._freeze(name)
                begin = time.monotonic()
                try:
                    await self._hypervisor.fork_image(domain.uuid, directory)
                    for volume in volumes:
                        await self._pools.of(volume).copy_for_image(volume, key)
                finally:
                    # Even when this task is cancelled meanwhile: nobody else would let the qube go on.
                    await asyncio.shield(self._go_on(domain))
                log.info("%s stood still for %.0f ms to be forked", name, (time.monotonic() - begin) * 1000)
            except BaseException:
                await self.drop(copy)
                raise
        return copy, settings

    async def _freeze(self, name: str) -> None:
        told = await self._links.ask(name, _FREEZE_SECONDS, op="freeze", on=True)
        if told.get("done") is not True:
            raise QubeError(f"{name} cannot be forked: {printable(str(told.get('why')), 200)}")

    async def _go_on(self, domain: Domain) -> None:
        """Also for a machine that was not stopped yet, only its programs: a copy may fail between the two."""
        try:
            await self._hypervisor.resume(domain.uuid)
        finally:
            try:
                told = await self._links.ask(domain.name, _FREEZE_SECONDS, op="freeze", on=False)
                if told.get("done") is not True:
                    log.error("%s: its programs stand still: %s", domain.name, printable(str(told.get("why")), 200))
            except DisconnectedError as error:
                log.warning("%s: its programs go on when it has a link again: %s", domain.name, error)

    async def drop(self, copy: WarmImage) -> None:
        """Remove a copy; forks that have started from it run on."""
        await self._hypervisor.release_image(copy.directory)
        for pool in copy.pools:
            await self._pools.named(pool).drop_image(copy.key)
        remove_tree(copy.directory)

    async def recover(self) -> None:
        """Let qubes go on that an earlier daemon was copying when it was killed."""
        for path in self._directory.glob(f"{_MARK}*") if self._directory.is_dir() else ():
            try:
                name = (path / _QUBE).read_text()
                domain = self._store.snapshot().domains[name]
                info = await self._hypervisor.info(domain.uuid)
                if info is not None and info.state is not PowerState.HALTED:
                    await self._go_on(domain)
                    if (info := await self._hypervisor.info(domain.uuid)) is not None:
                        self._states.set_all([info])
            except (CasemateError, OSError) as error:
                log.warning("%s: %s", path, printable(str(error)))
            remove_tree(Path(path))

    # -- the forks

    async def _create(self, settings: ForkSettings, creator: str) -> str:
        """A halted disposable with these settings."""
        name = await self._disposables.create(settings.base, creator, settings.features)

        def settle() -> None:
            with self._store.write() as transaction:
                settings.give(transaction.system.domains[name])

        try:
            await asyncio.to_thread(settle)
            await self._firewalls.write(self._store.snapshot().domains[name], settings.rules)
        except BaseException:
            await self._disposables.end(name)
            raise
        return name
