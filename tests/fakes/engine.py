"""The daemon's engine as it is, over machines and links that exist only by name and volumes that are empty files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from casemate.daemon.wiring import Parts, build
from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.accounts import Accounts
from casemate.engine.reconcile import reconcile
from casemate.host.acceleration import Acceleration
from casemate.host.hypervisor import EventKind, HostDisk, MachineEvent, MachineInfo, MachineSpec, Nic, PowerState
from casemate.host.process import Runner
from casemate.storage.driver import DIR_PATH, Driver
from casemate.store.store import Store
from casemate.wire.errors import DisconnectedError
from tests.builders import settings_in, uuid
from tests.component.laws.lab import LabLinks, TouchPool
from tests.fakes.wires import FakeWires


class FakeMachines:
    """A hypervisor's table of machines. It outlives the engine, as machines outlive a daemon."""

    def __init__(self) -> None:
        self.machines: dict[UUID, MachineInfo] = {}
        self.defined: set[UUID] = set()
        self.resized: list[tuple[UUID, str, int]] = []
        self.callbacks: list[Callable[[MachineEvent], None]] = []

    def add(self, name: str, ident: UUID) -> None:
        """A machine that nobody here has started."""
        self.defined.add(ident)
        self.machines[ident] = MachineInfo(name, ident, PowerState.RUNNING)

    def end(self, ident: UUID) -> None:
        """A machine ends by itself."""
        info = self.machines.pop(ident)
        for callback in self.callbacks:
            callback(MachineEvent(info.name, ident, EventKind.STOPPED))

    async def define(self, spec: MachineSpec) -> None:
        self.defined.add(spec.uuid)

    async def undefine(self, uuid: UUID) -> None:
        self.defined.discard(uuid)

    async def start_paused(self, spec: MachineSpec) -> None:
        self.defined.add(spec.uuid)
        self.machines[spec.uuid] = MachineInfo(spec.name, spec.uuid, PowerState.PAUSED)

    async def resume(self, uuid: UUID) -> None:
        self.machines[uuid] = replace(self.machines[uuid], state=PowerState.RUNNING)

    async def pause(self, uuid: UUID) -> None:
        self.machines[uuid] = replace(self.machines[uuid], state=PowerState.PAUSED)

    async def destroy(self, uuid: UUID) -> None:
        self.machines.pop(uuid, None)

    async def info(self, uuid: UUID) -> MachineInfo | None:
        return self.machines.get(uuid)

    async def list(self) -> list[MachineInfo]:
        return list(self.machines.values())

    async def attach_disk(self, uuid: UUID, disk: HostDisk) -> None:
        raise AssertionError("no test attaches disks here")

    async def detach_disk(self, uuid: UUID, target: str) -> None:
        raise AssertionError("no test detaches disks here")

    async def resize_disk(self, uuid: UUID, target: str, size: int) -> None:
        self.resized.append((uuid, target, size))

    async def host_disks(self) -> Mapping[UUID, Sequence[HostDisk]]:
        return {}

    async def nics(self) -> Mapping[UUID, Sequence[Nic]]:
        return {}

    async def attach_nic(self, uuid: UUID, nic: Nic) -> None:
        raise AssertionError("no test attaches interfaces here")

    async def detach_nic(self, uuid: UUID, tap: str) -> None:
        raise AssertionError("no test detaches interfaces here")

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> None:
        self.callbacks.append(callback)

    async def close(self) -> None:
        pass


class FakeLinks(LabLinks):
    """Links that outlive the engine too. ``silent`` qubes' agents never answer."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: set[str] = set()

    async def ask(self, name: str, timeout: float, **request: object) -> dict[str, object]:
        if name in self.silent:
            raise DisconnectedError(f"the link of {name} did not answer")
        return await super().ask(name, timeout, **request)


class Engine:
    """A state with template ``deb`` and qube ``work``, machines, links, and the parts of one daemon after another."""

    def __init__(self, directory: Path) -> None:
        self.settings = settings_in(directory)
        self.store = Store(self.settings.store_file)
        self.machines, self.links = FakeMachines(), FakeLinks()
        kernel = self.settings.state / "kernels/none"
        kernel.mkdir(parents=True)
        (kernel / "vmlinuz").touch()
        with self.store.write() as transaction:
            system = transaction.system
            system.add_pool("touch", "touch", {})
            system.set_text("default_pool", "touch")
            system.set_text("default_kernel", "none")
            system.add("TemplateVM", "deb", uuid=uuid(1))
            system.add("AppVM", "work", uuid=uuid(2), template="deb")

    async def daemon(self) -> Parts:
        """The parts of a daemon that has just been started: what an earlier one left is cleaned up."""
        runner = Runner()
        acceleration = AccelerationProbe(self.settings, runner, self.store)
        acceleration.found = Acceleration("tcg", "there are no machines")
        parts = build(
            self.settings, self.store, self.machines, runner, accounts=Accounts(self.settings, root=False),
            acceleration=acceleration, links=self.links,  # type: ignore[arg-type]
            drivers={"touch": Driver("touch", "Empty files.", (DIR_PATH,), TouchPool)},  # type: ignore[arg-type]
            wires=FakeWires(),
        )  # fmt: skip
        for name in ("deb", "work"):
            for volume in self.store.snapshot().domains[name].volumes.values():
                if volume is not None and volume.save_on_stop:
                    await parts.pools.of(volume).create(volume)
        await reconcile(
            self.settings, self.store, self.machines, parts.pools, parts.lifecycle, parts.creator, parts.disposables
        )
        return parts

    def left(self) -> set[str]:
        """What stands of qube ``work`` beside its kept volumes: nothing when it is halted."""
        run = self.settings.qube_run("work")
        volumes = self.settings.state / "pools/touch/work"
        return {
            *({"machine"} if uuid(2) in self.machines.machines else ()),
            *({"link"} if self.links.has("work") else ()),
            *({"directory"} if run.exists() else ()),
            *({"mark"} if run.with_suffix(".up").exists() else ()),
            *(f"volume {name}" for name in ("root", "volatile") if (volumes / name).exists()),
        }
