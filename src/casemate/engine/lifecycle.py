"""Start and stop of qubes: the steps, the locks, the states and what is said about them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from uuid import uuid4

from casemate.engine.bus import Bus
from casemate.engine.links import Links
from casemate.engine.operations import OperationLocks
from casemate.engine.start_steps import LinkStep
from casemate.engine.states import States
from casemate.engine.steps import Start, Step, take_down, take_up
from casemate.host.files import replace_file
from casemate.host.hypervisor import EventKind, Hypervisor, MachineEvent, MachineInfo, PowerState
from casemate.model.domain import Domain
from casemate.model.qube_settings import MACHINE_PROPERTIES
from casemate.settings import Settings
from casemate.store.store import Store
from casemate.wire import events as ev
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


class Lifecycle:
    """Starts and stops qubes, one operation at a time on each."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hypervisor: Hypervisor,
        links: Links,
        bus: Bus,
        states: States,
        locks: OperationLocks,
        steps: Sequence[Step],
        link_step: LinkStep,
    ) -> None:
        self._settings = settings
        self._store = store
        self._hypervisor = hypervisor
        self._links = links
        self._bus = bus
        self._states = states
        self._locks = locks
        self._steps = steps
        self._link_step = link_step
        self._halted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[None]] = set()
        self.after_halt: list[Callable[[str], Awaitable[None]]] = []
        """Called with the name of a qube after it has halted and its lock is free (disposables are removed there)."""
        hypervisor.subscribe(self._hear)
        links.subscribe(self._link_died)

    def domain(self, name: str) -> Domain:
        """The qube as stored now, NotFoundError when there is none."""
        domain = self._store.snapshot().domains.get(name)
        if domain is None:
            raise NotFoundError(name)
        return domain

    def is_running(self, name: str) -> bool:
        """Whether the qube runs (not paused, not on its way up or down)."""
        return self._states.of(name) is PowerState.RUNNING

    # -- start

    async def start(self, name: str) -> None:
        """Start a qube and wait until its agent answers. One that already runs is a success; so is a second start
        of one that is starting."""
        domain = self.domain(name)
        if domain.klass in ("AdminVM", "RemoteVM"):
            raise NotHaltedError(f"{name} always runs")
        # The net qube first and on its own: whoever waits for its lock must not hold another.
        netvm = domain.netvm
        halted = [one for one in (domain, netvm) if one is not None and self._states.of(one.name) is PowerState.HALTED]
        if netvm is not None and len(halted) == 2 and not self._must_not_start(domain):
            try:
                await self.start(netvm.name)
            except CasemateError as error:
                await self._say_failed(name, error)
                raise
        async with self._locks[name]:
            domain = self.domain(name)
            if self._states.of(name) is not PowerState.HALTED:
                return
            if self._must_not_start(domain):
                raise StartError(f"{name} must not be started: {domain.features['prohibit-start']}")
            self._halted[name].clear()
            self._states.put(name, domain.uuid, PowerState.TRANSIENT)
            guid = str(uuid4())
            self._bus.say(ev.DomainPreStart(name, guid, domain.memory << 20))
            try:
                start = Start(domain, self._bus.say, guid)
                await take_up(self._steps, start)
                log.info("%s: started: %s", name, ", ".join(f"{k} {v:.2f} s" for k, v in start.seconds.items()))
            except BaseException as error:
                self._states.put(name, domain.uuid, PowerState.HALTED)
                self._halted[name].set()
                self._bus.say(ev.DomainStartFailed(name, printable(str(error))))
                raise
            self._write_up_mark(name)
            self._states.put(name, domain.uuid, PowerState.RUNNING)
            info = await self._hypervisor.info(domain.uuid)
            self._bus.say(ev.DomainStart(name, guid))
            for announce in start.later:
                announce()
        if info is None or info.state is PowerState.HALTED:
            # It ended while its start was ending; the event came when nobody could act on it.
            await self._settle(name)
        else:
            self._states.set_all([info])

    async def _say_failed(self, name: str, error: CasemateError) -> None:
        """A start that failed before it was the qube's turn is a start that failed, to who follows the qube."""
        async with self._locks[name]:
            if self._states.of(name) is PowerState.HALTED:
                self._bus.say(ev.DomainPreStart(name, str(uuid4()), self.domain(name).memory << 20))
                self._bus.say(ev.DomainStartFailed(name, printable(str(error))))

    @staticmethod
    def _must_not_start(domain: Domain) -> bool:
        return bool(domain.features.get("prohibit-start"))

    # -- stop

    async def shutdown(self, name: str, force: bool = False, wait: bool = False) -> None:
        """Ask the guest to power off; with ``wait`` return when it has, ShutdownTimeoutError if it does not in time."""
        domain = self._started(name)
        if not force:
            users = [d.name for d in domain.connected_vms() if self._states.of(d.name) is not PowerState.HALTED]
            if users:
                raise InUseError(f"{name} provides network to running qubes: {', '.join(sorted(users))}")
        if self._states.of(name) is PowerState.PAUSED:
            raise NotRunningError(f"{name} is paused: unpause it, or kill it")
        self._bus.say(ev.DomainPreShutdown(name, force))
        self._states.put(name, domain.uuid, PowerState.HALTING)
        try:
            await self._links.ask(name, 10, op="poweroff")
        except DisconnectedError as error:
            if self._states.of(name) is PowerState.HALTING:
                self._states.put(name, domain.uuid, PowerState.RUNNING)
                self._bus.say(ev.DomainShutdownFailed(name, printable(str(error))))
                raise NotRunningError(f"{name} cannot be asked to shut down: {error}") from None
        if wait:
            try:
                await asyncio.wait_for(self._halted[name].wait(), domain.shutdown_timeout)
            except TimeoutError:
                if self._states.of(name) is PowerState.HALTING:
                    self._states.put(name, domain.uuid, PowerState.RUNNING)
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
        if self._states.of(name) is PowerState.HALTED:
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
        self._bus.say(ev.DomainPrePaused(name))
        async with self._locks[name]:
            await self._hypervisor.pause(domain.uuid)
            self._states.put(name, domain.uuid, PowerState.PAUSED)
        self._bus.say(ev.DomainPaused(name))

    async def unpause(self, name: str) -> None:
        """Let a paused machine go on."""
        domain = self._started(name)
        if self._states.of(name) is not PowerState.PAUSED:
            raise NotPausedError(f"{name} is not paused")
        self._bus.say(ev.DomainPreUnpaused(name))
        async with self._locks[name]:
            await self._hypervisor.resume(domain.uuid)
            self._states.put(name, domain.uuid, PowerState.RUNNING)
        self._bus.say(ev.DomainUnpaused(name))

    def _started(self, name: str) -> Domain:
        domain = self.domain(name)
        if domain.klass == "AdminVM":
            raise NotStartedError(f"{name} is this host")
        if self._states.of(name) is PowerState.HALTED:
            raise NotStartedError(f"{name} is not started")
        return domain

    # -- what happens by itself

    def _hear(self, event: MachineEvent) -> None:
        unasked = self._states.of(event.name) is PowerState.RUNNING and not self._locks.held(event.name)
        if event.kind is EventKind.PAUSED and unasked:
            log.warning("%s was paused by its machine: a disk has no room or fails; then qvm-unpause", event.name)
            self._bus.say(ev.DomainPaused(event.name))
        self._states.hear(event)
        if event.kind in (EventKind.STOPPED, EventKind.CRASHED):
            self._later(self._settle(event.name))

    def _link_died(self, name: str) -> None:
        """The qube's link ended unasked: give it a new one if the qube still runs."""
        self._later(self._relink(name))

    async def _relink(self, name: str) -> None:
        async with self._locks[name]:
            if self._states.of(name) is PowerState.HALTED or self._links.has(name):
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
        async with self._locks[name]:
            if self._states.of(name) is PowerState.HALTED:
                return
            domain = self.domain(name)
            info = await self._hypervisor.info(domain.uuid)
            if info is not None and info.state is not PowerState.HALTED:
                return
            self._bus.say(ev.DomainStopped(name))
            self._up_mark(name).unlink(missing_ok=True)
            try:
                await take_down(self._steps, domain)
            finally:
                self._states.put(name, domain.uuid, PowerState.HALTED)
                for changed in MACHINE_PROPERTIES:
                    self._bus.say(ev.PropertyChanged(name, changed))
                self._bus.say(ev.DomainShutdown(name))
        for action in self.after_halt:
            await action(name)
        self._halted[name].set()

    async def adopt(self, domain: Domain, info: MachineInfo) -> bool:
        """Take over a machine that an earlier daemon started; False when its start had not been finished."""
        name = domain.name
        async with self._locks[name]:
            if not self._up_mark(name).exists():
                return False
            self._states.adopt(info, self._up_mark(name).read_text().strip() or None)
            if self._links.adopt(name):
                await self._link_step.reopen(domain)
            else:
                await self._link_step.attach(domain)
            return True

    async def clear(self, domain: Domain) -> None:
        """Take all steps of a halted qube back (after a crash of the daemon)."""
        async with self._locks[domain.name]:
            self._up_mark(domain.name).unlink(missing_ok=True)
            await take_down(self._steps, domain)

    def _write_up_mark(self, name: str) -> None:
        """Tell the next daemon that the start was finished, and when the machine was started."""
        replace_file(self._up_mark(name), f"{self._states.all()[name].start_time or ''}\n".encode(), mode=0o600)

    def _up_mark(self, name: str) -> Path:
        """A file that is there while the qube runs and its start was finished; in it, when the machine was started."""
        return self._settings.qube_run(name).with_suffix(".up")

    async def close(self) -> None:
        """Let running clean-ups end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
