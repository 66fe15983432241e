"""Start and stop of qubes: the steps, the locks, the states and what is said about them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

from casemate.engine.bus import Bus
from casemate.engine.content import database_content
from casemate.engine.devices import Devices
from casemate.engine.links import Links, LinkSpec
from casemate.engine.machine import TARGETS, group_of, machine_spec, owner_of
from casemate.engine.operations import OperationLocks
from casemate.engine.states import States
from casemate.engine.steps import Start, Step, take_down, take_up
from casemate.host.devices import HostDevices
from casemate.host.hypervisor import Disk, EventKind, Hypervisor, MachineEvent, MachineInfo, PowerState
from casemate.model.classes import Template
from casemate.model.domain import Domain
from casemate.settings import Settings
from casemate.storage.pool import Account, Pools
from casemate.store.store import Store
from casemate.wire.errors import (
    CasemateError,
    DisconnectedError,
    InUseError,
    NotFoundError,
    NotHaltedError,
    NotPausedError,
    NotRunningError,
    NotStartedError,
    ShutdownTimeoutError,
    StartError,
    printable,
)

log = logging.getLogger(__name__)

_TERMINAL = re.compile(r"/dev/pts/[0-9]{1,7}")
CONSOLE_LINES = 8
"""Last lines of a qube's console that an error of its start shows."""


class VolumesStep:
    """The qube's disks: overlay of the template's root, private, fresh volatile."""

    def __init__(self, settings: Settings, pools: Pools, root: bool) -> None:
        self._settings = settings
        self._pools = pools
        self._root = root

    async def up(self, start: Start) -> None:
        """Prepare every volume that the class has."""
        domain = start.domain
        owner = Account(owner_of(self._settings, domain), group_of(self._settings)) if self._root else None
        for name, volume in domain.volumes.items():
            if volume is None or name not in TARGETS:
                continue
            # What others are based on changes beside the one that they run on.
            shared = (name == "root" and domain.klass == Template.class_name) or (
                name == "private" and bool(getattr(domain, "template_for_dispvms", False))
            )
            source = await self._pools.of(volume).start(volume, owner, shared)
            start.disks[name] = Disk(
                target=TARGETS[name],
                serial=name,
                path=source.path,
                format=source.format,
                readonly=source.readonly,
                backing=source.backing,
                scratch=source.scratch,
                own_layers=source.own_layers,
            )

    async def down(self, domain: Domain) -> None:
        """Throw overlays and volatile volumes away."""
        for name, volume in domain.volumes.items():
            if volume is not None and name in TARGETS:
                await self._pools.of(volume).stop(volume)


class DirectoryStep:
    """The directory of the qube's sockets, owned by the user that runs the qube."""

    def __init__(self, settings: Settings, root: bool) -> None:
        self._settings = settings
        self._root = root

    async def up(self, start: Start) -> None:
        """Make it, empty."""
        directory = self._settings.qube_run(start.domain.name)
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        if self._root:
            os.chown(directory, owner_of(self._settings, start.domain), group_of(self._settings))

    async def down(self, domain: Domain) -> None:
        """Remove it."""
        shutil.rmtree(self._settings.qube_run(domain.name), ignore_errors=True)


class MachineStep:
    """The virtual machine itself, created paused."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        states: States,
        acceleration: Callable[[], Awaitable[str]],
        root: bool,
    ) -> None:
        self._settings = settings
        self._hypervisor = hypervisor
        self._states = states
        self._acceleration = acceleration
        self._root = root

    async def up(self, start: Start) -> None:
        """Define it anew and create it."""
        domain = start.domain
        spec = machine_spec(self._settings, domain, start.disks, await self._acceleration(), self._root)
        start.say("domain-pre-spawn", start_guid=start.guid)
        await self._hypervisor.start_paused(spec)
        info = await self._hypervisor.info(domain.uuid)
        if info is not None:
            self._states.set_all([info])  # its id; that it is starting stays so
        for lost in ("xid", "stubdom_xid", "start_time"):
            start.say(f"property-reset:{lost}", name=lost)
        start.say("domain-spawn", start_guid=start.guid)

    async def down(self, domain: Domain) -> None:
        """Destroy it."""
        await self._hypervisor.destroy(domain.uuid)


class LinkStep:
    """The process that holds the qube's channel, and the door at which it asks for calls."""

    def __init__(
        self,
        settings: Settings,
        links: Links,
        door: Callable[[str], Awaitable[None]],
        close_door: Callable[[str], Awaitable[None]],
        root: bool,
    ) -> None:
        self._settings = settings
        self._links = links
        self._door = door
        self._close_door = close_door
        self._root = root

    async def up(self, start: Start) -> None:
        """Open the door, then start the link with the content of the qube's database."""
        await self.attach(start.domain)
        start.say("domain-qdb-create")

    async def attach(self, domain: Domain) -> None:
        """Give a running qube its link (at start, and again when one was killed)."""
        await self._door(domain.name)
        await self._links.start(
            LinkSpec(
                name=domain.name,
                directory=self._settings.qube_run(domain.name),
                default_user=domain.default_user,
                database=database_content(domain, os.urandom(64), _timezone()),
                uid=owner_of(self._settings, domain) if self._root else None,
                gid=group_of(self._settings) if self._root else None,
            )
        )

    async def reopen(self, domain: Domain) -> None:
        """Open the door of a qube whose link lives."""
        await self._door(domain.name)

    async def down(self, domain: Domain) -> None:
        """End the link and close the door."""
        await self._links.stop(domain.name)
        await self._close_door(domain.name)


class AgentStep:
    """The machine runs and its agent answers."""

    def __init__(self, hypervisor: Hypervisor, links: Links) -> None:
        self._hypervisor = hypervisor
        self._links = links

    async def up(self, start: Start) -> None:
        """Let the machine run and wait for its agent; a StartError shows the end of its console."""
        domain = start.domain
        start.say("domain-pre-unpaused")
        await self._hypervisor.resume(domain.uuid)
        start.say("domain-unpaused")
        try:
            within = domain.qrexec_timeout
            answer = await self._links.ask(domain.name, within + 5, op="ready", within=within)
        except DisconnectedError as error:
            answer = {"ready": False, "why": str(error)}
        if answer.get("ready") is not True:
            console = ""
            try:
                console = str((await self._links.ask(domain.name, 5, op="console")).get("text", ""))
            except DisconnectedError:
                pass
            lines = [printable(line, 200) for line in console.splitlines() if line.strip()]
            # After a panic the kernel prints registers for a page; what led to it stands before.
            panics = [number for number, line in enumerate(lines) if "Kernel panic" in line]
            lines = lines[: panics[0] + 1 if panics else None][-CONSOLE_LINES:]
            shown = "; its console ends:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
            why = printable(str(answer.get("why", "its agent does not answer")))
            raise StartError(f"Cannot start {domain.name}: {why}{shown}")

    async def down(self, domain: Domain) -> None:
        """Nothing: it ends with the machine."""


class Lifecycle:
    """Starts and stops qubes, one operation at a time on each."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hypervisor: Hypervisor,
        pools: Pools,
        links: Links,
        bus: Bus,
        states: States,
        acceleration: Callable[[], Awaitable[str]],
        door: Callable[[str], Awaitable[None]],
        close_door: Callable[[str], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._hypervisor = hypervisor
        self._links = links
        self._bus = bus
        self.states = states
        self.locks = OperationLocks()
        """The operation lock of each qube. Lock order: this, then the store; never back."""
        self._halted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[None]] = set()
        self.after_halt: list[Callable[[str], Awaitable[None]]] = []
        """Called with the name of a qube after it has halted and its lock is free (disposables are removed there)."""
        root = os.geteuid() == 0
        self.devices = Devices(settings, store, hypervisor, bus, states, self.locks, HostDevices(), root)
        self._link_step = LinkStep(settings, links, door, close_door, root)
        self._steps: tuple[Step, ...] = (
            VolumesStep(settings, pools, root),
            DirectoryStep(settings, root),
            MachineStep(settings, hypervisor, states, acceleration, root),
            self.devices,
            self._link_step,
            AgentStep(hypervisor, links),
        )
        hypervisor.subscribe(self._hear)

    def domain(self, name: str) -> Domain:
        """The qube as stored now, NotFoundError when there is none."""
        domain = self._store.snapshot().domains.get(name)
        if domain is None:
            raise NotFoundError(name)
        return domain

    # -- start

    async def start(self, name: str) -> None:
        """Start a qube and wait until its agent answers. One that already runs is a success; so is a second start
        of one that is starting."""
        domain = self.domain(name)
        if domain.klass in ("AdminVM", "RemoteVM"):
            raise NotHaltedError(f"{name} always runs")
        # The net qube first and on its own: whoever waits for its lock must not hold another.
        netvm = domain.netvm
        halted = [one for one in (domain, netvm) if one is not None and self.states.of(one.name) is PowerState.HALTED]
        if netvm is not None and len(halted) == 2 and not self._must_not_start(domain):
            try:
                await self.start(netvm.name)
            except CasemateError as error:
                await self._say_failed(name, error)
                raise
        async with self.locks[name]:
            domain = self.domain(name)
            if self.states.of(name) is not PowerState.HALTED:
                return
            if self._must_not_start(domain):
                raise StartError(f"{name} must not be started: {domain.features['prohibit-start']}")
            self._halted[name].clear()
            self.states.put(name, domain.uuid, PowerState.TRANSIENT)
            guid = str(uuid4())
            self._bus.say(name, "domain-pre-start", start_guid=guid, mem_required=str(domain.memory << 20))
            try:
                start = Start(domain, partial(self._bus.say, name), guid)
                await take_up(self._steps, start)
                log.info("%s: started: %s", name, ", ".join(f"{k} {v:.2f} s" for k, v in start.seconds.items()))
            except BaseException as error:
                self.states.put(name, domain.uuid, PowerState.HALTED)
                self._halted[name].set()
                self._bus.say(name, "domain-start-failed", reason=printable(str(error)))
                raise
            self._up_mark(name).touch()
            self.states.put(name, domain.uuid, PowerState.RUNNING)
            info = await self._hypervisor.info(domain.uuid)
            self._bus.say(name, "domain-start", start_guid=guid)
            for announce in start.later:
                announce()
        if info is None or info.state is PowerState.HALTED:
            # It ended while its start was ending; the event came when nobody could act on it.
            await self._settle(name)
        else:
            self.states.set_all([info])

    async def _say_failed(self, name: str, error: CasemateError) -> None:
        """A start that failed before it was the qube's turn is a start that failed, to who follows the qube."""
        async with self.locks[name]:
            if self.states.of(name) is PowerState.HALTED:
                memory = str(self.domain(name).memory << 20)
                self._bus.say(name, "domain-pre-start", start_guid=str(uuid4()), mem_required=memory)
                self._bus.say(name, "domain-start-failed", reason=printable(str(error)))

    @staticmethod
    def _must_not_start(domain: Domain) -> bool:
        return bool(domain.features.get("prohibit-start"))

    # -- stop

    async def shutdown(self, name: str, force: bool = False, wait: bool = False) -> None:
        """Ask the guest to power off; with ``wait`` return when it has, ShutdownTimeoutError if it does not in time."""
        domain = self._started(name)
        if not force:
            users = [d.name for d in domain.connected_vms() if self.states.of(d.name) is not PowerState.HALTED]
            if users:
                raise InUseError(f"{name} provides network to running qubes: {', '.join(sorted(users))}")
        if self.states.of(name) is PowerState.PAUSED:
            raise NotRunningError(f"{name} is paused: unpause it, or kill it")
        self._bus.say(name, "domain-pre-shutdown", force=str(force))
        self.states.put(name, domain.uuid, PowerState.HALTING)
        try:
            await self._links.ask(name, 10, op="poweroff")
        except DisconnectedError as error:
            if self.states.of(name) is PowerState.HALTING:
                self.states.put(name, domain.uuid, PowerState.RUNNING)
                self._bus.say(name, "domain-shutdown-failed", reason=printable(str(error)))
                raise NotRunningError(f"{name} cannot be asked to shut down: {error}") from None
        if wait:
            try:
                await asyncio.wait_for(self._halted[name].wait(), domain.shutdown_timeout)
            except TimeoutError:
                if self.states.of(name) is PowerState.HALTING:
                    self.states.put(name, domain.uuid, PowerState.RUNNING)
                raise ShutdownTimeoutError(
                    f"{name} did not shut down within {domain.shutdown_timeout} seconds"
                ) from None

    async def kill(self, name: str) -> None:
        """End the machine at once."""
        domain = self._started(name)
        await self._hypervisor.destroy(domain.uuid)
        await self._settle(name)

    async def console(self, name: str) -> str:
        """The path of a terminal that is the qube's serial console, from the moment its machine exists."""
        if self.states.of(name) is PowerState.HALTED:
            raise NotRunningError(f"{name} is not running")
        try:
            answer = await self._links.ask(name, 10, op="terminal")
        except DisconnectedError as error:
            raise NotRunningError(f"{name} has no console yet, or no more: {error}") from None
        path = answer.get("path")
        if not isinstance(path, str) or not _TERMINAL.fullmatch(path):
            raise NotRunningError(f"{name} has no console: {printable(str(answer.get('why', 'no terminal')), 200)}")
        return path

    async def pause(self, name: str) -> None:
        """Stop the machine's time."""
        domain = self._started(name)
        self._bus.say(name, "domain-pre-paused")
        async with self.locks[name]:
            await self._hypervisor.pause(domain.uuid)
            self.states.put(name, domain.uuid, PowerState.PAUSED)
        self._bus.say(name, "domain-paused")

    async def unpause(self, name: str) -> None:
        """Let a paused machine go on."""
        domain = self._started(name)
        if self.states.of(name) is not PowerState.PAUSED:
            raise NotPausedError(f"{name} is not paused")
        self._bus.say(name, "domain-pre-unpaused")
        async with self.locks[name]:
            await self._hypervisor.resume(domain.uuid)
            self.states.put(name, domain.uuid, PowerState.RUNNING)
        self._bus.say(name, "domain-unpaused")

    def _started(self, name: str) -> Domain:
        domain = self.domain(name)
        if domain.klass == "AdminVM":
            raise NotStartedError(f"{name} is this host")
        if self.states.of(name) is PowerState.HALTED:
            raise NotStartedError(f"{name} is not started")
        return domain

    # -- what happens by itself

    def _hear(self, event: MachineEvent) -> None:
        unasked = self.states.of(event.name) is PowerState.RUNNING and not self.locks.held(event.name)
        if event.kind is EventKind.PAUSED and unasked:
            log.warning("%s was paused by its machine: a disk has no room or fails; then qvm-unpause", event.name)
            self._bus.say(event.name, "domain-paused")
        self.states.hear(event)
        if event.kind in (EventKind.STOPPED, EventKind.CRASHED):
            self._later(self._settle(event.name))

    def link_died(self, name: str) -> None:
        """The qube's link ended unasked: give it a new one if the qube still runs."""
        self._later(self._relink(name))

    async def _relink(self, name: str) -> None:
        async with self.locks[name]:
            if self.states.of(name) is PowerState.HALTED or self._links.has(name):
                return
            domain = self.domain(name)
            info = await self._hypervisor.info(domain.uuid)
            if info is None or info.state is PowerState.HALTED:
                return
            await self._link_step.attach(domain)

    def _later(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except CasemateError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("clean-up failed")

        task = asyncio.ensure_future(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, name: str) -> None:
        """The machine has ended, whoever ended it: take all steps back and say so. No-op when it runs."""
        async with self.locks[name]:
            if self.states.of(name) is PowerState.HALTED:
                return
            domain = self.domain(name)
            info = await self._hypervisor.info(domain.uuid)
            if info is not None and info.state is not PowerState.HALTED:
                return
            self._bus.say(name, "domain-stopped")
            self._up_mark(name).unlink(missing_ok=True)
            try:
                await take_down(self._steps, domain)
            finally:
                self.states.put(name, domain.uuid, PowerState.HALTED)
                for lost in ("xid", "stubdom_xid", "start_time"):
                    self._bus.say(name, f"property-reset:{lost}", name=lost)
                self._bus.say(name, "domain-shutdown")
        for action in self.after_halt:
            await action(name)
        self._halted[name].set()

    async def adopt(self, domain: Domain, info: MachineInfo) -> bool:
        """Take over a machine that an earlier daemon started; False when its start had not been finished."""
        name = domain.name
        async with self.locks[name]:
            if not self._up_mark(name).exists():
                return False
            self.states.adopt(info)
            if self._links.adopt(name):
                await self._link_step.reopen(domain)
            else:
                await self._link_step.attach(domain)
            return True

    async def clear(self, domain: Domain) -> None:
        """Take all steps of a halted qube back (after a crash of the daemon)."""
        async with self.locks[domain.name]:
            self._up_mark(domain.name).unlink(missing_ok=True)
            await take_down(self._steps, domain)

    def _up_mark(self, name: str) -> Path:
        """A file that is there while the qube runs and its start was finished."""
        return self._settings.qube_run(name).with_suffix(".up")

    async def close(self) -> None:
        """Let running clean-ups end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)


def _timezone() -> str | None:
    """The host's time zone by name, None where it has none."""
    try:
        target = str(Path("/etc/localtime").readlink())
    except OSError:
        return None
    _before, found, zone = target.partition("zoneinfo/")
    return (
        zone if found and zone.isascii() and zone.replace("/", "").replace("_", "").replace("-", "").isalnum() else None
    )
