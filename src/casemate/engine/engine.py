"""The engine as one object: what the Admin API, the broker and the daemon ask of it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import asdict
from typing import Any

from casemate.engine.bus import Bus
from casemate.engine.create import Creator
from casemate.engine.intents import Intents
from casemate.engine.leases import Leases
from casemate.engine.lifecycle import Lifecycle
from casemate.engine.links import Links
from casemate.engine.machine import TARGETS, group_of, machine_spec
from casemate.engine.states import States
from casemate.engine.templates import Templates
from casemate.host.acceleration import Acceleration, probe
from casemate.host.files import room
from casemate.host.hypervisor import Disk, Hypervisor, MachineInfo, MachineSpec, PowerState
from casemate.host.process import Runner
from casemate.host.protections import protections
from casemate.model.domain import Domain
from casemate.qrexec.ask import Prompters
from casemate.qrexec.broker import API_SERVICES, Actions, Broker
from casemate.qrexec.calls import Calls
from casemate.qrexec.desk import Desk, policy_state
from casemate.qrexec.evaluate import SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.host_service import run_on_host
from casemate.qrexec.system import Systems
from casemate.settings import Settings
from casemate.storage.pool import Pools
from casemate.store.store import Store
from casemate.wire.errors import CallRefusedError, CasemateError, StartError
from casemate.wire.names import kernel_name

log = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0

ApiCalls = Callable[[socket.socket, str, str, str, str], Awaitable[None]]
"""Takes a call over: (call stream, source, method, argument, requested target); CallRefusedError refuses it."""


class Engine:
    """Everything that is done to qubes. One per state directory."""

    def __init__(self, settings: Settings, store: Store, hypervisor: Hypervisor, runner: Runner) -> None:
        self.settings = settings
        self.store = store
        self.hypervisor = hypervisor
        self.bus = Bus()
        self._runner = runner
        self._acceleration: Acceleration | None = None
        self._probing = asyncio.Lock()
        self._states = States()
        self.pools = Pools(settings, runner, store, group_of(settings) if os.geteuid() == 0 else None)
        self._links = Links(settings, runner, self._link_died)
        self.lifecycle = Lifecycle(
            settings, store, hypervisor, self.pools, self._links, self.bus, self._states, self._accelerate,
            self._open_door, self._close_door,
        )  # fmt: skip
        self.devices = self.lifecycle.devices
        self.creator = Creator(
            store, hypervisor, self.pools, self.lifecycle, self.bus, Intents(settings.state / "intents"), self._specify
        )
        self._systems = Systems(store.snapshot, lambda name: self._states.of(name).value)
        self.policy = PolicyFiles(settings.policy_dir, settings.policy_run_dir)
        calls, prompters = Calls(), Prompters(settings.state / "prompter", runner)
        self.desk = Desk(settings, self.policy, self._systems, prompters, calls)
        self.broker = Broker(
            settings,
            self.policy,
            Actions(
                system_info=self.system_info,
                start=self.lifecycle.start,
                is_running=lambda name: self._states.of(name) is PowerState.RUNNING,
                create_disposable=self.creator.create_disposable,
                remove_disposable=self._end_disposable,
                run_on_host=self._run_on_host,
            ),
            prompters.ask,
            calls,
            prompters.notify,
        )
        self._refreshing: asyncio.Task[None] | None = None
        self.leases = Leases(self._end_disposable)
        self.lifecycle.after_halt.append(self._remove_if_disposable)
        self.start = self.lifecycle.start
        self.shutdown = self.lifecycle.shutdown
        self.kill = self.lifecycle.kill
        self.pause = self.lifecycle.pause
        self.unpause = self.lifecycle.unpause
        self.console = self.lifecycle.console
        self.remove = self.creator.remove
        self.install_template = Templates(settings, runner, store, self.creator).install
        self.create_disposable = self.creator.create_disposable
        self.clone_volume = self.creator.clone_volume
        self.resize_volume = self.creator.resize_volume
        self.clear_volume = self.creator.clear_volume
        self.import_volume = self.creator.import_volume
        self.revert_volume = self.creator.revert_volume
        self.serve_api: ApiCalls | None = None
        """Serves Admin API calls of qubes that the policy allows; set by whoever has the API."""
        self.api_services: Container[str] = ()
        """Further services of this host that it serves."""

    # -- what others ask

    async def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None,
        pools: Mapping[str, str] | None = None,
        creator: str = "dom0",
    ) -> None:
        """A new halted qube."""
        await self.creator.create(klass, name, label, template, pools, creator=creator)

    async def pool_room(self, name: str) -> tuple[int, int] | None:
        """Size and used bytes of the file system that a pool lies on; None while there is no such directory."""
        directory = self.pools.directory(self.store.snapshot().pool(name))
        return await asyncio.to_thread(room, directory)

    def states(self) -> Mapping[str, MachineInfo]:
        """What every qube is doing; those not in it are halted."""
        return self._states.all()

    async def volume_usage(self, name: str, volume: str) -> int:
        """Bytes that a volume takes on the disk."""
        found = self.store.snapshot().domains[name].volume(volume)
        return await self.pools.of(found).usage(found) if volume in TARGETS else 0

    async def volume_revisions(self, name: str, volume: str) -> list[str]:
        """The older states of a volume, oldest first."""
        found = self.store.snapshot().domains[name].volume(volume)
        return self.pools.of(found).revisions(found) if found.save_on_stop and volume in TARGETS else []

    def volume_outdated(self, name: str, volume: str) -> bool:
        """Whether a qube runs on a state of its template that is not the newest."""
        found = self.store.snapshot().domains[name].volume(volume)
        running = self._states.of(name) is not PowerState.HALTED
        return running and volume in TARGETS and self.pools.of(found).is_outdated(found)

    async def refresh(self) -> None:
        """Bring figures (memory, processor time) of all running qubes up to date."""
        self._states.set_all(await self.hypervisor.list())

    def system_info(self) -> SystemInfo:
        """The system as the policy sees it."""
        return self._systems()

    async def acceleration(self) -> Acceleration:
        """Whether KVM really runs a guest here; probed once per boot of the host."""
        async with self._probing:
            if self._acceleration is None:
                kernel = self.store.snapshot().default_kernel
                if not kernel:
                    raise StartError("There is no kernel yet: build a template first (casemate template build)")
                directory = self.settings.state / "kernels" / kernel_name(kernel)
                self._acceleration = await probe(
                    self.settings, self._runner, directory / "vmlinuz", directory / "initrd"
                )
            return self._acceleration

    async def probe(self) -> str:
        """``kvm`` or ``tcg``, and why."""
        found = await self.acceleration()
        return f"{found.kind} {found.reason}"

    def status(self) -> dict[str, Any]:
        """What this host does for qubes and which protections it lacks; never waits."""
        found = self._acceleration
        root = os.geteuid() == 0
        return {
            "acceleration": f"{found.kind} {found.reason}" if found else "not probed yet: happens at the first start",
            "hypervisor": f"libvirt, {self.settings.hypervisor}",
            "state": str(self.settings.state),
            "running": len(self._states.all()),
            "policy": policy_state(self.policy),
            "isolation": "each qube runs as a user of its own"
            if root
            else f"weaker: all qubes run as user {os.geteuid()}, as this daemon does; root would give each its own",
            "protections": [asdict(one) for one in protections(self.settings, found.kind if found else None)],
        }

    async def _accelerate(self) -> str:
        return (await self.acceleration()).kind

    def _specify(self, domain: Domain) -> MachineSpec | None:
        """The machine as it will be, for its definition at creation; None for classes that are no machines."""
        if domain.klass in ("AdminVM", "RemoteVM") or not domain.kernel:
            return None
        disks = {
            name: Disk(target=TARGETS[name], serial=name, path=self.pools.of(volume).path(volume), format="qcow2")
            for name, volume in domain.volumes.items()
            if volume is not None and name in TARGETS
        }
        kind = self._acceleration.kind if self._acceleration is not None else "tcg"
        return machine_spec(self.settings, domain, disks, kind, os.geteuid() == 0)

    # -- links, doors, disposables

    def _link_died(self, name: str) -> None:
        self.lifecycle.link_died(name)

    async def _open_door(self, name: str) -> None:
        await self.broker.open_door(name)

    async def _close_door(self, name: str) -> None:
        await self.broker.close_door(name)

    async def _end_disposable(self, name: str) -> None:
        domain = self.store.snapshot().domains.get(name)
        if domain is None or domain.klass != "DispVM":
            return
        try:
            if self._states.of(name) is not PowerState.HALTED:
                await self.lifecycle.kill(name)
            else:
                await self._remove_if_disposable(name)
        except CasemateError as error:
            log.warning("disposable %s: %s", name, error)

    async def _remove_if_disposable(self, name: str) -> None:
        domain = self.store.snapshot().domains.get(name)
        if domain is not None and domain.klass == "DispVM" and getattr(domain, "auto_cleanup", False):
            await self.creator.remove(name)

    async def _run_on_host(self, stream: socket.socket, source: str, service: str, argument: str, target: str) -> None:
        if service.startswith(API_SERVICES) or service in self.api_services:
            if self.serve_api is None:
                raise CallRefusedError(f"nothing here serves {service}")
            await self.serve_api(stream, source, service, argument, target)
            return
        await run_on_host(self.settings, self._runner, stream, source, service, argument, target)

    # -- begin and end of the daemon

    async def reconcile(self) -> None:
        """Make the world fit the store after a daemon was killed: adopt what runs, clear what was half done."""
        await self.creator.clean_up()
        system = self.store.snapshot()
        by_uuid = {d.uuid: d for d in system.domains.values()}
        running = {}
        for info in await self.hypervisor.list():
            domain = by_uuid.get(info.uuid)
            if domain is None:
                log.warning("ending machine %s, which the store does not know", info.name)
                await self.hypervisor.destroy(info.uuid)
                await self.hypervisor.undefine(info.uuid)
            elif info.state is not PowerState.HALTED:
                running[domain.name] = info
        for domain in system.domains.values():
            if domain.klass in ("AdminVM", "RemoteVM"):
                continue
            info_or_none = running.get(domain.name)
            try:
                if info_or_none is not None and await self.lifecycle.adopt(domain, info_or_none):
                    continue
                if self._has_left_overs(domain):
                    await self.lifecycle.clear(domain)
                await self._remove_if_disposable(domain.name)
            except CasemateError as error:
                log.error("%s: %s", domain.name, error)
        known = {d.name for d in system.domains.values()}
        directory = self.settings.run / "qubes"
        for path in directory.iterdir() if directory.is_dir() else []:
            if re.split(r"[.]", path.name)[0] not in known:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

        self._refreshing = asyncio.create_task(self._keep_fresh())
        await self.devices.watch()

    def _has_left_overs(self, domain: Domain) -> bool:
        """True when something of a start is still there, though the qube does not run."""
        run = self.settings.qube_run(domain.name)
        if any(path.exists() for path in (run, run.with_suffix(".up"), run.with_suffix(".link"))):
            return True
        volumes = (volume for volume in domain.volumes.values() if volume is not None and volume.name in TARGETS)
        return any(self.pools.of(volume).has_left_overs(volume) for volume in volumes)

    async def _keep_fresh(self) -> None:
        """Memory and processor time of running qubes, every few seconds, in one call."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if self._states.all():
                try:
                    await self.refresh()
                except CasemateError as error:
                    log.warning("%s", error)

    async def close(self) -> None:
        """Stop serving; qubes and links go on."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        self.devices.close()
        await self.leases.close()
        await self.desk.close()
        await self.broker.close()
        await self.lifecycle.close()
        self._links.release()
        await self.hypervisor.close()
