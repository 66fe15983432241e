"""An engine without machines: starts and stops are entries of a table, creation is the store's entry alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from casemate.engine.devices import Devices
from casemate.engine.operations import OperationLocks
from casemate.host.devices import HostDevice, HostDevices
from casemate.host.hypervisor import HostDisk, PowerState
from casemate.settings import load
from casemate.store.store import Store
from casemate.wire.errors import (
    DeviceBusyError,
    InUseError,
    NotFoundError,
    NotHaltedError,
    NotPausedError,
    NotRunningError,
    NotStartedError,
    QubeError,
    RevisionNotFoundError,
    ShutdownTimeoutError,
    StartError,
    StorageError,
)


@dataclass(frozen=True)
class FakeMachine:
    """What a running qube looks like from the API."""

    state: str
    xid: int
    memory_kib: int = 400 << 10
    cpu_time_ns: int = 1_000_000


class FakeDisks:
    """The part of a hypervisor that devices need. ``stuck`` machines do not let go of anything."""

    def __init__(self) -> None:
        self.disks: dict[UUID, list[HostDisk]] = {}
        self.stuck: set[UUID] = set()

    async def host_disks(self) -> Mapping[UUID, list[HostDisk]]:
        return self.disks

    async def attach_disk(self, uuid: UUID, disk: HostDisk) -> None:
        await asyncio.sleep(0)
        self.disks.setdefault(uuid, []).append(disk)

    async def detach_disk(self, uuid: UUID, target: str) -> None:
        await asyncio.sleep(0)
        if uuid in self.stuck:
            raise DeviceBusyError(f"The guest does not let go of its disk {target}")
        self.disks[uuid] = [disk for disk in self.disks.get(uuid, []) if disk.target != target]


class FakeHost(HostDevices):
    """The host's devices as files say them; their nodes are not opened, as there are none."""

    def node(self, device: HostDevice) -> Path:
        return self.path(device.port)


def add_block(root: Path, name: str, size: int = 8, **texts: str) -> Path:
    """Describe a block device below a fake /sys: ``size`` in sectors; texts such as ``loop__backing_file``."""
    place = root / "block" / name
    place.mkdir(parents=True)
    for key, text in {"size": str(size), "ro": "0", "dev": "7:0", **texts}.items():
        path = place / key.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return place


Listener = Callable[[str, str, dict[str, str]], None]


class FakeEngine:
    """Follows the engine's contract on a real store. ``deaf`` qubes never shut down; ``broken`` ones do not start."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.machines: dict[str, FakeMachine] = {}
        self.deaf: set[str] = set()
        self.broken: set[str] = set()
        self.listeners: list[Listener] = []
        self.revisions: dict[tuple[str, str], list[str]] = {}
        self.images: dict[tuple[str, str], bytes] = {}
        self._next_xid = 1
        self.disks = FakeDisks()
        self.sys = store.path.parent / "sys"
        self.devices = Devices(
            load(), store, self.disks, self, self, OperationLocks(),  # type: ignore[arg-type]
            host=FakeHost(self.sys, self.sys / "proc", self.sys / "dev"), root=False,
        )  # fmt: skip

    def of(self, name: str) -> PowerState:
        return PowerState(self.machines[name].state) if name in self.machines else PowerState.HALTED

    def say(self, subject: str, event: str, **details: str) -> None:
        for listener in self.listeners:
            listener(subject, event, details)

    def states(self) -> Mapping[str, FakeMachine]:
        return self.machines

    def _known(self, name: str) -> None:
        if name not in self.store.snapshot().domains:
            raise NotFoundError(name)

    def _machine(self, name: str) -> FakeMachine:
        self._known(name)
        if name not in self.machines:
            raise NotStartedError(f"{name} is not started")
        return self.machines[name]

    async def start(self, name: str) -> None:
        self._known(name)
        if name in self.machines:
            return
        domain = self.store.snapshot().domains[name]
        self.say(name, "domain-pre-start", mem_required=str(domain.memory << 20))
        if domain.netvm is not None:
            await self.start(domain.netvm.name)
        if name in self.broken:
            self.say(name, "domain-start-failed", reason="it is broken")
            raise StartError(f"Cannot start {name}: it is broken")
        self.machines[name] = FakeMachine("Running", self._next_xid)
        self._next_xid += 1
        self.say(name, "domain-start")

    async def shutdown(self, name: str, force: bool = False, wait: bool = False) -> None:
        self._machine(name)
        users = [d.name for d in self.store.snapshot().domains[name].connected_vms() if d.name in self.machines]
        if users and not force:
            raise InUseError(f"{name} provides network to running qubes: {', '.join(users)}")
        self.say(name, "domain-pre-shutdown", force=str(force))
        if name in self.deaf:
            self.machines[name] = replace(self.machines[name], state="Halting")
            if wait:
                raise ShutdownTimeoutError(f"{name} did not shut down")
            return
        await self.kill(name)

    async def kill(self, name: str) -> None:
        self._machine(name)
        await asyncio.sleep(0)
        del self.machines[name]
        self.say(name, "domain-shutdown")
        domain = self.store.snapshot().domains[name]
        if domain.auto_cleanup:
            await self.remove(name)

    async def pause(self, name: str) -> None:
        self.machines[name] = replace(self._machine(name), state="Paused")
        self.say(name, "domain-paused")

    async def unpause(self, name: str) -> None:
        machine = self._machine(name)
        if machine.state != "Paused":
            raise NotPausedError(f"{name} is not paused")
        self.machines[name] = replace(machine, state="Running")
        self.say(name, "domain-unpaused")

    async def console(self, name: str) -> str:
        if name not in self.machines:
            raise NotRunningError(f"{name} is not running")
        return "/dev/pts/7"

    async def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None,
        pools: Mapping[str, str] | None = None,
        creator: str = "dom0",
    ) -> None:
        def add() -> None:
            with self.store.write() as transaction:
                transaction.system.add(
                    klass, name, uuid=uuid4(), label=label, template=template, pools=pools, creator=creator
                )

        await asyncio.to_thread(add)
        self.say(name, "domain-create-on-disk")

    async def remove(self, name: str) -> None:
        self._known(name)
        if name in self.machines:
            raise NotHaltedError(f"{name} is running")
        self.say("", "domain-pre-delete", vm=name)

        def forget() -> None:
            with self.store.write() as transaction:
                transaction.system.remove(name)

        await asyncio.to_thread(forget)

    async def create_disposable(self, template: str | None, creator: str = "dom0") -> str:
        system = self.store.snapshot()
        base = system.domains[template] if template is not None else system.default_dispvm
        if base is None or not base.template_for_dispvms:
            raise QubeError("There is no template of disposables to use")
        dispid = 1000 + len(system.domains)
        with self.store.write() as transaction:
            transaction.system.add(
                "DispVM", f"disp{dispid}", uuid=uuid4(), label=base.label.name, template=base.name, dispid=dispid,
                properties={"auto_cleanup": True}, creator=creator,
            )  # fmt: skip
        return f"disp{dispid}"

    async def clone_volume(self, source: str, target: str, volume: str) -> None:
        if {source, target} & self.machines.keys():
            raise NotHaltedError("a volume of a running qube cannot be cloned")
        size = self.store.snapshot().domains[source].volume(volume).size
        await self._set_size(target, volume, size)

    async def resize_volume(self, name: str, volume: str, size: int) -> None:
        if size < self.store.snapshot().domains[name].volume(volume).size:
            raise StorageError(f"volume {volume} of {name} cannot become smaller")
        await self._set_size(name, volume, size)

    async def _set_size(self, name: str, volume: str, size: int) -> None:
        with self.store.write() as transaction:
            domain = transaction.system.domains[name]
            domain.set_volume(replace(domain.volume(volume), size=size))

    async def clear_volume(self, name: str, volume: str) -> None:
        if name in self.machines:
            raise NotHaltedError(f"{name} is running")
        if not self.store.snapshot().domains[name].volume(volume).save_on_stop:
            raise StorageError(f"volume {volume} of {name} is not kept")
        self.images.pop((name, volume), None)

    async def import_volume(self, name: str, volume: str, image: Path, size: int) -> None:
        await self.clear_volume(name, volume)
        self.images[name, volume] = image.read_bytes()

    async def pool_room(self, name: str) -> tuple[int, int] | None:
        return (1000, 10)

    async def volume_revisions(self, name: str, volume: str) -> list[str]:
        return self.revisions.get((name, volume), [])

    async def revert_volume(self, name: str, volume: str, revision: str) -> None:
        if name in self.machines:
            raise NotHaltedError(f"{name} is running")
        if revision not in self.revisions.get((name, volume), []):
            raise RevisionNotFoundError(f"volume {volume} of {name} has no older state {revision!r}")

    def volume_outdated(self, name: str, volume: str) -> bool:
        return False

    async def volume_usage(self, name: str, volume: str) -> int:
        return self.store.snapshot().domains[name].volume(volume).size // 2

    async def install_template(self, name: str, kind: str) -> None:
        await self.create("TemplateVM", name, "black", None)

    async def probe(self) -> str:
        return "tcg: there are no machines"
