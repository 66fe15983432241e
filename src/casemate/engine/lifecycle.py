"""A qube's way from halted to running and back, by a start, an end of its machine, or a daemon that takes over.

::

    HALTED ── start: steps up ──▶ TRANSIENT ──▶ RUNNING ◀──▶ PAUSED
       ▲                             │ a step fails   │ the machine ends: kill, power off, crash
       └──── steps down in reverse ──┴────────────────┘

Every change happens under the qube's operation lock. A machine that ends is heard of by an event of libvirt, by the
answer of a kill, or after a start; whoever comes first takes the steps down (``machine_ended``).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from casemate.engine.bus import Bus
from casemate.engine.links import Links
from casemate.engine.operations import OperationLocks
from casemate.engine.power_table import IS, Command, Way, decide
from casemate.engine.start_marks import StartMarks
from casemate.engine.start_steps import LinkStep
from casemate.engine.states import STUCK, States
from casemate.engine.steps import Start, Step, take_down, take_up
from casemate.engine.warm_image import WarmImage
from casemate.engine.warm_images import WarmImages
from casemate.host.hypervisor import EventKind, Hypervisor, MachineEvent, MachineInfo, PowerState
from casemate.model.domain import Domain
from casemate.model.qube_settings import MACHINE_PROPERTIES
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.errors import (
    CasemateError,
    NotHaltedError,
    StartError,
    printable,
)

log = logging.getLogger(__name__)

_UP = (PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED)
"""States between which a machine goes to and fro without being started or ended."""


class Lifecycle:
    """Takes machines up and down, one operation at a time on each qube.

    Owns: who waits for a qube to halt, the clean-ups under way, and (through ``marks``) the fact that a start was
    finished. Changes the table of states at the beginning and end of each operation. Everything else that a running
    qube has belongs to a step.
    """

    def __init__(
        self,
        store: Store,
        hypervisor: Hypervisor,
        links: Links,
        bus: Bus,
        states: States,
        locks: OperationLocks,
        marks: StartMarks,
        steps: Sequence[Step],
        link_step: LinkStep,
        images: WarmImages,
    ) -> None:
        """``steps`` in the order in which a start takes them, ``link_step`` among them."""
        self._images = images
        self._store = store
        self._hypervisor = hypervisor
        self._links = links
        self._bus = bus
        self._states = states
        self._locks = locks
        self._marks = marks
        self._steps = steps
        self._link_step = link_step
        self._halted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[None]] = set()
        self._missed: set[str] = set()
        self.after_halt: list[Callable[[str], Awaitable[None]]] = []
        """Called with the name of a qube after it has halted and its lock is free (disposables are removed there)."""
        hypervisor.subscribe(self._hear)
        links.subscribe(self._link_died)

    # -- start

    async def start(self, name: str, fork: WarmImage | None = None) -> None:
        """Start a qube and wait until its agent answers. One that already runs is a success; so is a second start
        of one that is starting. One that is on its way down is started when it has halted. ``fork``: the copy of
        another qube's guest, from which this one goes on or not at all."""
        domain = self._store.snapshot().domains[name]
        if domain.klass in ("AdminVM", "RemoteVM"):
            raise NotHaltedError(f"{name} always runs")
        await self._wait_for_its_end(domain)
        await self._start_netvm(domain)
        async with self._locks[name]:
            domain = self._store.snapshot().domains[name]
            if decide(Command.START, name, self._states.of(name)) is not Way.DOES:
                return
            if self._must_not_start(domain):
                raise StartError(f"{name} must not be started: {domain.features['prohibit-start']}")
            info = await self._take_up(domain, fork)
        if info is None or info.state is PowerState.HALTED:
            # It ended while its start was ending. The event came when the lock was taken and nobody could act on it.
            await self.machine_ended(name)
        else:
            self._states.set_all([info])

    async def _wait_for_its_end(self, domain: Domain) -> None:
        """Wait for a qube that is on its way down, as long as it may take for that; NotHaltedError.

        Not under the qube's lock, which its end needs.
        """
        state = self._states.of(domain.name)
        if state is PowerState.TRANSIENT or decide(Command.START, domain.name, state) is not Way.WAITS:
            return  # a start under way is waited for by its lock
        try:
            await self.wait_until_halted(domain.name, domain.shutdown_timeout)
        except TimeoutError:
            raise NotHaltedError(
                f"{domain.name} {IS[state]}, and has not halted within {domain.shutdown_timeout} seconds"
            ) from None

    async def _start_netvm(self, domain: Domain) -> None:
        """Start the qube's net qube if both are halted.

        This happens before the qube's own lock is taken: a start of the net qube waits for the net qube's lock, and
        whoever waits for one operation lock must not hold another.
        """
        netvm = domain.netvm
        if netvm is None or self._must_not_start(domain):
            return
        if any(self._states.of(one.name) is not PowerState.HALTED for one in (domain, netvm)):
            return
        try:
            await self.start(netvm.name)
        except CasemateError as error:
            # Clients follow the events of the qube that they asked for, so the failure is announced as one of its own.
            async with self._locks[domain.name]:
                if self._states.of(domain.name) is PowerState.HALTED:
                    self._bus.say(ev.DomainPreStart(domain.name, str(uuid4()), domain.memory << 20))
                    self._bus.say(ev.DomainStartFailed(domain.name, printable(str(error))))
            raise

    async def _take_up(self, domain: Domain, fork: WarmImage | None) -> MachineInfo | None:
        """Take all steps up, under the qube's lock; what the hypervisor says of the machine at the end."""
        name, guid = domain.name, str(uuid4())
        self._halted[name].clear()
        self._states.put(name, domain.uuid, PowerState.TRANSIENT)
        self._bus.say(ev.DomainPreStart(name, guid, domain.memory << 20))
        try:
            start = await self._go_on_or_boot(domain, guid, fork)
        except BaseException as error:
            self._states.put(name, domain.uuid, PowerState.HALTED)
            self._halted[name].set()
            self._bus.say(ev.DomainStartFailed(name, printable(str(error))))
            raise
        how = "booted"
        if start.image is not None:
            how = f"went on from {'fork' if start.image.is_fork else 'warm image'} {start.image.key}"
        log.info("%s: %s: %s", name, how, ", ".join(f"{k} {v:.2f} s" for k, v in start.seconds.items()))
        self._marks.write(name, self._states.all()[name].start_time)
        self._states.put(name, domain.uuid, PowerState.RUNNING)
        info = await self._hypervisor.info(domain.uuid)
        self._bus.say(ev.DomainStart(name, guid))
        for announce in start.later:
            announce()
        return info

    async def _go_on_or_boot(self, domain: Domain, guid: str, fork: WarmImage | None) -> Start:
        """Take all steps up from a warm image, where there is one; else, or if that fails, with a boot."""
        if fork is not None:
            start = Start(domain, self._bus.say, guid, fork)
            await take_up(self._steps, start)
            return start
        start = Start(domain, self._bus.say, guid, await self._images.find(domain))
        if start.image is not None:
            try:
                await take_up(self._steps, start)
                return start
            except CasemateError as error:
                # The image may be damaged, or something of the host may have changed: another one is made in time.
                log.warning("%s boots, its warm image is of no use: %s", domain.name, printable(str(error)))
                await self._images.drop(start.image.key)
            start = Start(domain, self._bus.say, guid)
        start.memory_is_file = self._images.are_possible(domain)
        await take_up(self._steps, start)
        return start

    @staticmethod
    def _must_not_start(domain: Domain) -> bool:
        return bool(domain.features.get("prohibit-start"))

    async def wait_until_halted(self, name: str, seconds: float) -> None:
        """Return when a qube that is on its way down has halted; TimeoutError."""
        async with asyncio.timeout(seconds):
            await self._halted[name].wait()

    # -- what happens by itself

    def _hear(self, event: MachineEvent) -> None:
        if event.kind in (EventKind.STOPPED, EventKind.CRASHED):
            self._later(self.machine_ended(event.name))
        elif event.kind is not EventKind.STARTED:
            self._later(self._follow(event))

    async def _follow(self, event: MachineEvent) -> None:
        """The machine was paused or resumed, by us or by itself: bring the table of states up to date.

        The event may be late: that of a pause can arrive after the resume that followed. So the machine is asked, once
        a pause or unpause of ours that is under way has come to its end.
        """
        name = event.name
        async with self._locks[name]:
            before = self._states.of(name)
            if before not in _UP:
                return  # on its way up or down, which ends with a state of its own
            info = await self._hypervisor.info(event.uuid)
            if info is None or info.state is before or info.state not in _UP:
                return  # a machine that has ended since is machine_ended's, which would find nothing left to do
            self._states.set_all([info])
            if info.state is PowerState.PAUSED:
                log.warning("%s was paused by its machine: %s; then qvm-unpause", name, STUCK)
                self._states.paused_by_itself(name, STUCK)
                self._bus.say(ev.DomainPaused(name))

    def _link_died(self, name: str) -> None:
        """The qube's link ended unasked: give it a new one if the qube still runs."""
        self._later(self._relink(name))

    async def _relink(self, name: str) -> None:
        async with self._locks[name]:
            if self._states.of(name) is PowerState.HALTED or self._links.has(name):
                return
            domain = self._store.snapshot().domains[name]
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

    def missed(self, name: str) -> None:
        """A machine seems to have ended unheard, as when its event was lost. Called again as long as it does."""
        if name not in self._missed:
            self._missed.add(name)
            self._later(self._make_up_for(name))

    async def _make_up_for(self, name: str) -> None:
        try:
            await self.machine_ended(name)  # looks for itself: what was seen may be old
        finally:
            self._missed.discard(name)

    async def machine_ended(self, name: str) -> None:
        """The machine has ended, whoever ended it: take all steps back and announce it. Does nothing when it runs, and
        when somebody has done this already: the event of libvirt and the answer of a kill come in any order."""
        async with self._locks[name]:
            if self._states.of(name) is PowerState.HALTED:
                return
            domain = self._store.snapshot().domains[name]
            info = await self._hypervisor.info(domain.uuid)
            if info is not None and info.state is not PowerState.HALTED:
                return
            self._bus.say(ev.DomainStopped(name))
            self._marks.remove(name)
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
            if not self._marks.exists(name):
                return False
            self._states.adopt(info, self._marks.start_time(name))
            if self._links.adopt(name):
                await self._link_step.reopen(domain)
            else:
                await self._link_step.attach(domain)
            return True

    async def clear(self, domain: Domain) -> None:
        """Take all steps of a halted qube back (after a crash of the daemon)."""
        async with self._locks[domain.name]:
            self._marks.remove(domain.name)
            await take_down(self._steps, domain)

    async def close(self) -> None:
        """Let running clean-ups end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
