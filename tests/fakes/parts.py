"""The engine's parts without machines: starts and stops are entries of a table, creation is the store's entry alone.

One file although it is long: the parts of one fake engine, which know each other's tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from casemate import __version__
from casemate import devices as device_classes
from casemate.api.context import Context
from casemate.api.events import Subscriptions
from casemate.api.parts import Permissions
from casemate.backup.tar_writer import FileContent
from casemate.daemon.status import HostFigures
from casemate.devices.device_class import Opening
from casemate.engine.accounts import Accounts
from casemate.engine.backups import Backups
from casemate.engine.bus import Bus
from casemate.engine.devices import Devices
from casemate.engine.firewall import Firewalls
from casemate.engine.fork_settings import ForkSettings
from casemate.engine.guests import Guests
from casemate.engine.machine import TARGETS
from casemate.engine.operations import OperationLocks
from casemate.engine.preloads import Preloads
from casemate.engine.qube_files import QubeFiles
from casemate.engine.snapshots import Snapshot
from casemate.engine.template_builds import TemplateBuilds
from casemate.engine.warm_image import WarmImage
from casemate.host.build_steps import STEPS, BuildReport
from casemate.host.hypervisor import PowerState
from casemate.host.process import Runner
from casemate.host.protections import protections
from casemate.model.domain import Domain
from casemate.model.system import PoolConfig
from casemate.qrexec.files import PolicyFiles
from casemate.settings import load
from casemate.storage.drivers import load as load_drivers
from casemate.storage.nbd_export import nbd_export
from casemate.storage.saved_state import Served
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.errors import (
    DisconnectedError,
    InUseError,
    NotHaltedError,
    NotPausedError,
    NotRunningError,
    NotStartedError,
    QubeError,
    RecipeNotFoundError,
    RevisionNotFoundError,
    ShutdownTimeoutError,
    StartError,
    StorageError,
    ValueInvalidError,
)
from casemate.wire.recipe import Recipe
from tests.builders import settings_in
from tests.fakes.host_devices import FakeDisks, FakeKernel
from tests.fakes.network import FakeNetwork

GUID = "0f5e6a1c-0000-4000-8000-000000000000"
"""That of each start: nothing here looks at it."""


@dataclass(frozen=True)
class FakeMachine:
    """What a running qube looks like from the API."""

    state: str
    xid: int
    memory_kib: int = 400 << 10
    cpu_time_ns: int = 1_000_000
    start_time: str = "1700000000.25"


class FakeStates:
    """Which qubes run: the fake's own table, in the words of the engine's and of the API's."""

    def __init__(self) -> None:
        self.machines: dict[str, FakeMachine] = {}

    def all(self) -> Mapping[str, FakeMachine]:
        return self.machines

    def of(self, name: str) -> PowerState:
        return PowerState(self.machines[name].state) if name in self.machines else PowerState.HALTED


class FakePower:
    """Starts and stops. ``deaf`` qubes never shut down; ``broken`` ones do not start."""

    def __init__(self, store: Store, states: FakeStates, bus: Bus, qubes: FakeQubes) -> None:
        self.store = store
        self.machines = states.machines
        self.bus = bus
        self.qubes = qubes
        self.deaf: set[str] = set()
        self.broken: set[str] = set()
        self._next_xid = 1
        self.guests: Guests | None = None
        """Whose clocks are set after a pause; None: nobody's."""

    def _machine(self, name: str) -> FakeMachine:
        self.store.snapshot().domains.find(name)
        if name not in self.machines:
            raise NotStartedError(f"{name} is not started")
        return self.machines[name]

    async def start(self, name: str) -> None:
        self.store.snapshot().domains.find(name)
        if name in self.machines:
            return
        domain = self.store.snapshot().domains[name]
        self.bus.say(ev.DomainPreStart(name, GUID, domain.memory << 20))
        if domain.netvm is not None:
            await self.start(domain.netvm.name)
        if name in self.broken:
            self.bus.say(ev.DomainStartFailed(name, "it is broken"))
            raise StartError(f"Cannot start {name}: it is broken")
        self.machines[name] = FakeMachine("Running", self._next_xid)
        self._next_xid += 1
        self.bus.say(ev.DomainStart(name, GUID))

    async def shutdown(self, name: str, force: bool = False, wait: bool = False) -> None:
        self._machine(name)
        users = [d.name for d in self.store.snapshot().domains[name].connected_vms() if d.name in self.machines]
        if users and not force:
            raise InUseError(f"{name} provides network to running qubes: {', '.join(users)}")
        self.bus.say(ev.DomainPreShutdown(name, force))
        if name in self.deaf:
            self.machines[name] = replace(self.machines[name], state="Halting")
            if wait:
                raise ShutdownTimeoutError(f"{name} did not shut down")
            return
        await self.kill(name)

    async def kill(self, name: str) -> None:
        self._machine(name)
        await asyncio.sleep(0)
        if self.machines.pop(name, None) is None:
            return  # somebody else has ended it meanwhile
        self.bus.say(ev.DomainShutdown(name))
        domain = self.store.snapshot().domains[name]
        if domain.auto_cleanup:
            await self.qubes.remove(name)

    async def pause(self, name: str) -> None:
        self.machines[name] = replace(self._machine(name), state="Paused")
        self.bus.say(ev.DomainPaused(name))

    async def unpause(self, name: str) -> None:
        await asyncio.sleep(0)  # whoever asks at the same time finds it paused, as with a real machine
        machine = self._machine(name)
        if machine.state != "Paused":
            raise NotPausedError(f"{name} is not paused")
        self.machines[name] = replace(machine, state="Running")
        if self.guests is not None:
            with contextlib.suppress(DisconnectedError, TimeoutError):
                await self.guests.set_clock(name)
        self.bus.say(ev.DomainUnpaused(name))

    async def console(self, name: str) -> str:
        if name not in self.machines:
            raise NotRunningError(f"{name} is not running")
        return "/dev/pts/7"


class FakeQubes:
    """Creation and removal: entries of the store."""

    def __init__(self, store: Store, states: FakeStates, bus: Bus) -> None:
        self.store = store
        self.machines = states.machines
        self.bus = bus

    async def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None,
        pools: Mapping[str, str] | None = None,
        *,
        features: Mapping[str, str] | None = None,
        creator: str = "dom0",
    ) -> None:
        def add() -> None:
            with self.store.write() as transaction:
                domain = transaction.system.add(
                    klass, name, uuid=uuid4(), label=label, template=template, pools=pools, creator=creator
                )
                for key, value in (features or {}).items():
                    domain.features[key] = value

        await asyncio.to_thread(add)
        self.bus.say(ev.DomainCreatedOnDisk(name))

    async def remove(self, name: str) -> None:
        self.store.snapshot().domains.find(name)
        if name in self.machines:
            raise NotHaltedError(f"{name} is running")
        self.bus.say(ev.DomainPreDelete(name))

        def forget() -> None:
            with self.store.write() as transaction:
                transaction.system.remove(name)

        await asyncio.to_thread(forget)


class FakeDisposables:
    """Entries of the store."""

    def __init__(self, store: Store, power: FakePower, qubes: FakeQubes) -> None:
        self.store = store
        self.power = power
        self.qubes = qubes
        self._number = 1000

    def base(self, template: str | None) -> Domain:
        system = self.store.snapshot()
        base = system.domains[template] if template is not None else system.default_dispvm
        if base is None or not base.template_for_dispvms:
            raise QubeError("There is no template of disposables to use")
        return base

    async def create(
        self, template: str | None, creator: str = "dom0", features: Mapping[str, str] | None = None
    ) -> str:
        base = self.base(template)
        self._number += 1
        name = f"disp{self._number}"
        with self.store.write() as transaction:
            made = transaction.system.add(
                "DispVM", name, uuid=uuid4(), label=base.label.name, template=base.name, dispid=self._number,
                properties={"auto_cleanup": True}, creator=creator,
            )  # fmt: skip
            for key, value in (features or {}).items():
                made.features[key] = value
        return name

    async def end(self, name: str) -> None:
        if name in self.power.machines:
            await self.power.kill(name)
        elif name in self.store.snapshot().domains:
            await self.qubes.remove(name)


class FakeVolumes:
    """Sizes in the store, contents in ``images``, older states in ``kept``; both by (qube, volume)."""

    def __init__(self, store: Store, states: FakeStates) -> None:
        self.store = store
        self.machines = states.machines
        self.kept: dict[tuple[str, str], list[str]] = {}
        self.images: dict[tuple[str, str], bytes] = {}
        self.outdated: set[tuple[str, str]] = set()

    async def clone(self, source: str, target: str, volume: str) -> None:
        if {source, target} & self.machines.keys():
            raise NotHaltedError("a volume of a running qube cannot be cloned")
        size = self.store.snapshot().domains[source].volume(volume).size
        await self._set_size(target, volume, size)

    async def resize(self, name: str, volume: str, size: int) -> None:
        if size < self.store.snapshot().domains[name].volume(volume).size:
            raise StorageError(f"volume {volume} of {name} cannot become smaller")
        await self._set_size(name, volume, size)

    async def _set_size(self, name: str, volume: str, size: int) -> None:
        with self.store.write() as transaction:
            domain = transaction.system.domains[name]
            domain.set_volume(replace(domain.volume(volume), size=size))

    async def clear(self, name: str, volume: str) -> None:
        if name in self.machines:
            raise NotHaltedError(f"{name} is running")
        if not self.store.snapshot().domains[name].volume(volume).save_on_stop:
            raise StorageError(f"volume {volume} of {name} is not kept")
        self.images.pop((name, volume), None)

    async def import_image(self, name: str, volume: str, image: Path, size: int) -> None:
        await self.clear(name, volume)
        with open(image, "rb") as file:  # without the hole at its end, which may be gigabytes
            end = max((at + length for at, length in FileContent(file.fileno()).extents()), default=0)
            file.seek(0)
            self.images[name, volume] = file.read(end)

    async def export(self, name: str, volume: str, target: Path) -> None:
        size = self.store.snapshot().domains[name].volume(volume).size
        with open(target, "wb") as file:
            file.write(self.images.get((name, volume), b""))
            file.truncate(size)

    @contextlib.asynccontextmanager
    async def serve(self, name: str, volume: str, address: Path, since: Sequence[str]) -> AsyncIterator[Served]:
        size = self.store.snapshot().domains[name].volume(volume).size
        content = self.images.get((name, volume), b"")
        layers = (hashlib.sha256(content).hexdigest(),)
        if tuple(since) == layers:
            yield Served(size, layers, 0)
            return
        image = address.with_suffix(".raw")
        try:
            await self.export(name, volume, image)
            async with nbd_export(Runner(), image, "raw", None, address):
                yield Served(size, layers, None)
        finally:
            image.unlink(missing_ok=True)

    def revisions(self, name: str, volume: str) -> list[str]:
        return self.kept.get((name, volume), [])

    async def revert(self, name: str, volume: str, revision: str) -> None:
        if name in self.machines:
            raise NotHaltedError(f"{name} is running")
        if revision not in self.kept.get((name, volume), []):
            raise RevisionNotFoundError(f"volume {volume} of {name} has no older state {revision!r}")

    def is_outdated(self, name: str, volume: str) -> bool:
        return (name, volume) in self.outdated

    async def usage(self, name: str, volume: str) -> int:
        return self.store.snapshot().domains[name].volume(volume).size // 2


class FakePools:
    """Pools of one size, of the real drivers."""

    drivers = load_drivers()

    async def prepare(self, config: PoolConfig) -> None:
        """Every directory will do."""

    async def room(self, name: str) -> tuple[int, int] | None:
        return (1000, 10)


class FakeTemplates:
    """Templates are entries of the store too."""

    def __init__(self, qubes: FakeQubes) -> None:
        self._qubes = qubes

        self._recipes: dict[str, Recipe] = {}

    async def install(self, name: str, recipe: Recipe, report: BuildReport) -> None:
        for step in STEPS[:-1]:
            report.line(f"{name}: {step}")
            report.ended(step)
        await self._qubes.create("TemplateVM", name, "black", None)
        with self._qubes.store.write() as transaction:
            if transaction.system.default_template is None:
                transaction.system.set("default_template", name)
        self._recipes[name] = recipe

    async def rebuild(self, name: str, fresh: bool, report: BuildReport) -> None:
        assert name in self._recipes
        report.line(f"{name}: built {'anew' if fresh else 'before'}")

    def recipe(self, template: Domain) -> Recipe:
        if template.name not in self._recipes:
            raise RecipeNotFoundError(f"{template.name} was not built from a recipe")
        return self._recipes[template.name]


class FakeHostStatus:
    """A host that can do nothing."""

    def figures(self) -> HostFigures:
        return HostFigures(maxmem=8192, no_cpus=4)

    async def probe(self) -> str:
        return "tcg: there are no machines"

    def status(self) -> dict[str, object]:
        """The real protections of this host; what else is said depends on no machine."""
        found = [asdict(one) for one in protections(load(), "tcg")]
        return {"version": __version__, "acceleration": "none", "network": "none", "protections": found}


class FakeWarm:
    """Warm images that are there when they are asked for; none is a file."""

    def __init__(self) -> None:
        self.images: dict[str, WarmImage] = {}

    def has(self, template: str) -> bool:
        return any(image.template == template for image in self.images.values())

    def list(self) -> list[WarmImage]:
        return list(self.images.values())

    async def build(self, template: str) -> WarmImage:
        key = f"{len(self.images):016x}"
        self.images[key] = WarmImage(key, Path("/nowhere"), template, ("default",), 1.0, 2.0, 3 << 20)
        return self.images[key]

    async def drop(self, key: str) -> bool:
        return self.images.pop(key, None) is not None


class FakeForks:
    """Forks of qubes that run: names alone."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def fork(self, name: str, count: int, _creator: str) -> list[str]:
        self.asked.append((name, count))
        return [f"{name}-{number}" for number in range(count)]


class FakeSnapshots:
    """Snapshots of qubes: what was said of them alone."""

    def __init__(self) -> None:
        self.kept: dict[str, Snapshot] = {}

    def list(self) -> list[Snapshot]:
        return list(self.kept.values())

    async def take(self, qube: str, name: str) -> Snapshot:
        settings = ForkSettings(qube, "base", {}, {}, (), ())
        self.kept[name] = Snapshot(name, "0" * 16, Path("/nowhere"), ("default",), 1.0, 3 << 20, settings)
        return self.kept[name]

    async def resume(self, name: str, count: int, _creator: str) -> Sequence[str]:
        self._need(name)
        return [f"{self.kept[name].qube}-{number}" for number in range(count)]

    async def drop(self, name: str) -> None:
        self._need(name)
        del self.kept[name]

    def _need(self, name: str) -> None:
        if name not in self.kept:
            raise ValueInvalidError(f"There is no snapshot {name!r}")


class FakePermissions:
    """No policy: nothing is allowed."""

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        return False


class FakeParts:
    """One of each, over a real store and a real bus."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.bus = Bus()
        self.states = FakeStates()
        self.machines = self.states.machines
        self.qubes = FakeQubes(store, self.states, self.bus)
        self.power = FakePower(store, self.states, self.bus, self.qubes)
        self.disposables = FakeDisposables(store, self.power, self.qubes)
        self.volumes = FakeVolumes(store, self.states)
        self.free_memory = 4096
        """MiB that the host has left."""
        self.firewalls = Firewalls(QubeFiles(store.path.parent / "qubes"), self.bus.say)
        self.network = FakeNetwork(store, self.states, self.firewalls)  # type: ignore[arg-type]
        self.templates = FakeTemplates(self.qubes)
        self.warm = FakeWarm()
        self.forks = FakeForks()
        self.snapshots = FakeSnapshots()
        self.disks = FakeDisks()
        self.sys = store.path.parent / "sys"
        kernel = FakeKernel(self.sys, self.sys / "proc", self.sys / "dev")
        opening = Opening(kernel, self.disks, frozenset(TARGETS.values()))  # type: ignore[arg-type]
        self.devices = Devices(
            store, self.bus, self.states, OperationLocks(), Accounts(load(), root=False),  # type: ignore[arg-type]
            device_classes.load(), opening,
        )  # fmt: skip

    def preloads(self, guests: Any) -> Preloads:
        """The real part that gives disposables away; it starts none before ``start`` is awaited."""
        made = Preloads(
            self.store, self.states, self.bus, self.power, self.disposables, guests,  # type: ignore[arg-type]
            lambda name, volume: self.volumes.is_outdated(name, volume), lambda: self.free_memory, self.warm.has,
        )  # fmt: skip
        self.bus.subscribe(made.heard)
        return made

    def context(self, events: Subscriptions, permissions: Permissions | None = None) -> Context:
        """What the API's handlers get."""
        self.bus.subscribe(events.publish)
        directory = self.store.path.parent
        run_policy = directory / "run" / "policy.d"
        guests = self.power.guests = Guests(settings_in(directory))
        return Context(
            store=self.store,
            events=events,
            states=self.states,
            power=self.power,
            qubes=self.qubes,
            disposables=self.preloads(guests),
            warm=self.warm,
            forks=self.forks,
            snapshots=self.snapshots,
            volumes=self.volumes,
            pools=FakePools(),
            devices=self.devices,
            templates=TemplateBuilds(self.templates, self.bus.say),
            host=FakeHostStatus(),
            permissions=permissions or FakePermissions(),
            guests=guests,
            network=self.network,
            firewalls=self.firewalls,
            policy=PolicyFiles(directory / "policy.d", run_policy if run_policy.is_dir() else None),
            backups=Backups(
                settings_in(directory),
                self.store,
                self.states,
                self.volumes,
                QubeFiles(directory / "qubes"),
                Runner(),
                guests,
                self.bus.say,
                (directory / "backup",),
            ),
        )
