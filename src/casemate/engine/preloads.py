"""Disposables that are started before they are asked for, and stand still until they are.

One file although it is long: giving away, discarding and starting share which disposable is in whose hands.

::

    store ── a commit ──▶ ┐                      ┌─▶ removes those that are too many, or outdated
    bus ──── a shutdown ─▶├─ wake ──▶ one task ──┤
    create() ─ a use ───▶ ┘                      └─▶ starts one that is lacking, then pauses it

    create() ──▶ one that waits: unpaused, and no longer listed          (milliseconds)
             └─▶ one that is being started: waited for                   (the rest of a start)
             └─▶ none: a new one, which its caller starts                (a whole start)

How many wait, a person says. Where nobody does, and a warm image makes a start cheap, as many wait as were used lately,
at most two (engine/preload_uses.py).

Which wait is kept in the store (``model/preloading.py``), so that the next daemon finds them again. A disposable waits
paused. Whoever unpauses it uses it, also a person with ``qvm-unpause``: it is then a disposable like any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from casemate.engine.bus import Bus
from casemate.engine.commits import after_each
from casemate.engine.disposables import Disposables
from casemate.engine.guests import Guests
from casemate.engine.power import Power
from casemate.engine.preload_uses import Wanted
from casemate.engine.states import States
from casemate.host.hypervisor import PowerState
from casemate.model import preloading
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import CasemateError, printable

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""After a start that failed, until the next attempt with that template."""
GAP_SECONDS = 5.0
"""After a disposable was made because none waited, and after the daemon's start, until the next is started."""
MEMORY_SECONDS = 30.0
"""Between two looks at the host's memory while there is too little of it."""


class Preloads:
    """Gives disposables away, and keeps as many waiting as their templates want.

    Owns: which disposable is being given away or removed now, which one is being started, and when each template's
    next start is due.
    """

    def __init__(
        self,
        store: Store,
        states: States,
        bus: Bus,
        power: Power,
        disposables: Disposables,
        guests: Guests,
        is_outdated: Callable[[str, str], bool],
        free_memory: Callable[[], int],
        is_warm: Callable[[str], bool],
    ) -> None:
        """``is_outdated(qube, volume)``: see Volumes. ``free_memory()``: what the host has left, in MiB.
        ``is_warm(template)``: whether its disposables have a warm image to go on from."""
        self._store = store
        self._states = states
        self._bus = bus
        self._power = power
        self._disposables = disposables
        self._guests = guests
        self._is_outdated = is_outdated
        self._free_memory = free_memory
        self._wanted = Wanted(is_warm)
        self._taken: set[str] = set()
        """Disposables that are listed still, but are somebody's already, or on their way out."""
        self._starting: dict[str, asyncio.Task[bool]] = {}
        self._due: dict[str, float] = {}
        """By template: before this moment (monotonic) none is started."""
        self._draining: set[str] = set()
        """Templates with a delay below zero of which one was used: none is started until none is left."""
        self._held: set[str] = set()
        """Templates of which none is started, because they are being changed."""
        self._making = asyncio.Lock()
        """Held while a disposable is made, until it is in ``_starting``."""
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None
        self.before_none: Callable[[str], Awaitable[None]] = _nothing
        """Awaited before ``none_of`` ends those that wait: others have disposables of a template too."""

    # -- beginning and end

    async def start(self) -> None:
        """Adopt what an earlier daemon left, then keep up with changes."""
        for domain in list(self._store.snapshot().domains.values()):
            if domain.klass == "DispVM" and not self._may_stay(domain):
                await self._discard([domain.name], "the daemon ended before it was given away")
        for template in preloading.templates(self._store.snapshot()):
            # Those that wait by use go on waiting, as if they had just been wanted.
            for _one in preloading.listed(template):
                self._wanted.note(template.name)
        after_each(self._store, self._wake.set)
        self._first = time.monotonic() + GAP_SECONDS
        self._worker = asyncio.create_task(self._run())

    def _may_stay(self, disposable: Domain) -> bool:
        """Whether a disposable is somebody's, or waits as it should. A daemon that was killed while it started one, or
        between unpausing it and giving its name to somebody, leaves one that nobody knows of."""
        if disposable.features.get(preloading.IN_PROGRESS):
            return False
        return not disposable.is_preload or self._states.of(disposable.name) is PowerState.PAUSED

    async def close(self) -> None:
        """Start no more. Those that wait stay for the next daemon; a start that is under way is taken back."""
        tasks = [*self._tasks, *self._starting.values(), *([self._worker] if self._worker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def heard(self, event: ApiEvent) -> None:
        """A listener for the bus: a shutdown may have made volumes outdated, and an unpause is a use."""
        if isinstance(event, ev.DomainShutdown):
            self._wake.set()
        elif isinstance(event, ev.DomainUnpaused):
            self._notice_use(event.subject)

    def _notice_use(self, name: str) -> None:
        """Somebody has unpaused a disposable that waited: it is used from now on."""
        if name not in self._taken and name not in self._starting and self._is_listed(name):
            log.info("%s was unpaused without being asked for", name)
            self._taken.add(name)
            self._later(self._used_unasked(name))

    def _is_listed(self, name: str) -> bool:
        domain = self._store.snapshot().domains.get(name)
        return domain is not None and domain.is_preload

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def waiting(self) -> list[tuple[str, int, int]]:
        """Templates whose disposables are to wait: its name, how many wait, how many are wanted."""
        system = self._store.snapshot()
        return [
            (one.name, len([n for n in preloading.listed(one) if self._states.of(n) is PowerState.PAUSED]), wanted)
            for one in self._wanted.templates(system)
            if (wanted := self._wanted.count(system, one))
        ]

    def look(self) -> None:
        """Look again what is wanted: a template has a warm image now."""
        self._wake.set()

    # -- giving away

    async def create(self, template: str | None, creator: str = "dom0") -> str:
        """A disposable of the template (None: the default one) for ``creator``: one that waits, which then runs, or a
        new halted one. Returns its name."""
        base = self._disposables.base(template)
        self._wanted.note(base.name)
        for name in self._ready(base):
            if await self._give_away(name, base.name, creator):
                return name
        # Whoever asked starts it now: the next one of ours must not slow that down.
        self._due[base.name] = max(self._due.get(base.name, 0.0), time.monotonic() + GAP_SECONDS)
        self._wake.set()
        return await self._disposables.create(base.name, creator)

    def _ready(self, template: Domain) -> list[str]:
        """Those that could be given away: first those that wait, then one that is being started."""
        mine = [name for name in preloading.listed(template) if name not in self._taken]
        waiting = [name for name in mine if name not in self._starting and self._why_useless(name) is None]
        # One more than is needed, in case the first turns out to be of no use.
        return [*waiting, *(name for name in mine if name in self._starting)][:2]

    async def _give_away(self, name: str, template: str, creator: str) -> bool:
        """Make a listed disposable somebody's; False when it turns out to be of no use."""
        self._taken.add(name)
        try:
            starting = self._starting.get(name)
            if starting is not None:
                await asyncio.wait({starting})  # which does not cancel the start if our caller goes away
                if not _succeeded(starting):
                    return False
                if self._has_outdated_disks(name):  # its template changed while it was being started
                    self._later(self._discard([name], "its template has changed since"))
                    return False
            if self._states.of(name) is PowerState.PAUSED:
                await self._power.unpause(name)
            delay = self._put_off_next(template)
            # Last: a daemon that is killed before this finds it listed and not paused, and removes it (_may_stay).
            await self._change(preloading.give_away, name, creator)
        except CasemateError as error:
            log.warning("%s waited for its use and is of none: %s", name, printable(str(error)))
            self._later(self._discard([name], "it could not be given away"))
            return False
        except BaseException:
            self._later(self._discard([name], "whoever asked for it has gone"))
            raise
        self._taken.discard(name)
        self._bus.say(ev.PreloadUsed(template, name, delay))
        return True

    async def _used_unasked(self, name: str) -> None:
        try:
            template = self._store.snapshot().domains[name].template
            assert template is not None, "a disposable has one"
            delay = self._put_off_next(template.name)
            await self._change(preloading.give_away, name, None)
            self._bus.say(ev.PreloadUsed(template.name, name, delay))
        except CasemateError as error:
            log.warning("%s: %s", name, error)  # it was removed meanwhile
        finally:
            self._taken.discard(name)

    def _put_off_next(self, template: str) -> float:
        """One is being used: the next is started after the template's delay, which is returned.

        Before the use is committed, because the commit wakes the task that would start the next at once.
        """
        delay = preloading.delay(self._store.snapshot().domains[template])
        self._due[template] = time.monotonic() + abs(delay)
        if delay < 0:
            self._draining.add(template)
        return delay

    def preload(self, template: str | None) -> None:
        """Have a template's disposables started now, as many as are wanted (None: the default template's)."""
        self._due[self._disposables.base(template).name] = 0.0
        self._wake.set()

    async def end(self, name: str) -> None:
        """Kill and remove a disposable; nothing to do when it is gone."""
        await self._disposables.end(name)

    # -- what is of no use

    def _why_useless(self, name: str) -> str | None:
        """Why a disposable that waits must not be given away; None when it may."""
        domain = self._store.snapshot().domains.get(name)
        if domain is None:
            return "it is gone"
        if self._states.of(name) is not PowerState.PAUSED:
            return "it does not stand still"
        if domain.features.get(preloading.COMPLETED) != preloading.made_of(domain):
            return "a setting has changed since"
        return "its template has changed since" if self._has_outdated_disks(name) else None

    def _has_outdated_disks(self, name: str) -> bool:
        return any(self._is_outdated(name, volume) for volume in ("root", "private"))

    async def _discard(self, names: Sequence[str], why: str) -> None:
        """Take disposables off the list, and end them."""
        log.info("ending %s: %s", ", ".join(names), why)
        self._taken.update(names)
        try:
            await self._change(preloading.take_off, names)
            for name in names:
                await self._disposables.end(name)
        except CasemateError as error:
            log.warning("%s: %s", ", ".join(names), error)
        finally:
            self._taken.difference_update(names)
            self._wake.set()

    @asynccontextmanager
    async def none_of(self, template: str) -> AsyncIterator[None]:
        """While the block runs, no disposable of the template waits: it is being removed, or made another."""
        self._held.add(template)
        try:
            await self.before_none(template)
            async with self._making:  # one that is being made has a name, and is in our hands, when we have the lock
                domains = self._store.snapshot().domains
                starting = {
                    name: task
                    for name, task in self._starting.items()
                    if name in domains and (base := domains[name].template) is not None and base.name == template
                }
            for task in starting.values():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            names = [*preloading.listed(domains[template]), *starting] if template in domains else []
            if names:
                await self._discard(list(dict.fromkeys(names)), f"{template} is being changed")
            yield
        finally:
            self._held.discard(template)
            self._wake.set()

    # -- keeping as many as are wanted

    async def _run(self) -> None:
        wait: float | None = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            self._wake.clear()
            try:
                wait = await self._round()
            except CasemateError as error:
                log.warning("disposables are not started before they are asked for: %s", error)
                wait = RETRY_SECONDS
            except Exception:
                log.exception("disposables are not started before they are asked for")
                wait = RETRY_SECONDS

    async def _round(self) -> float | None:
        """Remove what is of no use, start one that is lacking. Seconds until the next look; None: until woken."""
        system = self._store.snapshot()
        templates = self._wanted.templates(system)
        for template in templates:
            await self._prune(system, template)
        waits: list[float] = []
        for template in templates:
            names = preloading.listed(template)
            if not names:
                self._draining.discard(template.name)
            if (fewer := self._wanted.seconds_until_fewer(template.name)) is not None:
                waits.append(fewer)
            if len(names) >= self._wanted.count(system, template) or template.name in self._held | self._draining:
                continue
            if (wait := self._due.get(template.name, self._first) - time.monotonic()) > 0:
                waits.append(wait)
            elif self._free_memory() - preloading.threshold(system) < template.memory:
                log.info("no disposable of %s is started before it is asked for: too little memory", template.name)
                waits.append(MEMORY_SECONDS)
            else:
                # One after the other: two starts at once would take as long, and slow down what people do.
                await self._start_one(template.name)
                return 0.0
        return min(waits, default=None)

    async def _prune(self, system: System, template: Domain) -> None:
        """Take off the list what is too much or of no use."""
        for name in preloading.listed(template):
            # The event of an unpause comes when the clock is set, seconds after the qube runs.
            if self._states.of(name) is PowerState.RUNNING:
                self._notice_use(name)
        names = [name for name in preloading.listed(template) if name not in self._taken]
        useless = {name: why for name in names if name not in self._starting and (why := self._why_useless(name))}
        good = [name for name in names if name not in useless]
        useless |= dict.fromkeys(good[self._wanted.count(system, template) :], "it is one too many")
        for name, why in useless.items():
            await self._discard([name], why)

    async def _start_one(self, template: str) -> None:
        self._bus.say(ev.PreloadStart(template, "fewer wait than are wanted"))
        features = {preloading.IN_PROGRESS: "1", preloading.INTERNAL: "1"}
        try:
            async with self._making:
                if template in self._held:
                    return
                name = await self._disposables.create(template, features=features)
                self._starting[name] = task = asyncio.create_task(self._bring_up(name))
        except CasemateError as error:
            log.warning("no disposable of %s waits: %s", template, printable(str(error)))
            self._due[template] = time.monotonic() + RETRY_SECONDS
            return
        try:
            await asyncio.wait({task})
            if not task.cancelled() and not task.result():
                self._due[template] = time.monotonic() + RETRY_SECONDS
        finally:
            task.cancel()
            del self._starting[name]

    async def _bring_up(self, name: str) -> bool:
        """Start a disposable and let it stand still, unless somebody waits for it. False: it is of no use."""
        try:
            await self._change(preloading.enlist, name)
            made = preloading.made_of(self._store.snapshot().domains[name])
            await self._power.start(name)
            await self._guests.settle(name)
            if name not in self._taken:
                await self._power.pause(name)
            await self._change(preloading.complete, name, made)
        except CasemateError as error:
            log.warning("%s was started before it was asked for, and failed: %s", name, printable(str(error)))
            self._later(self._discard([name], "its start failed"))
            return False
        return True

    async def _change(self, change: Callable[..., None], *words: object) -> None:
        """Change the store, in a thread: a transaction waits for the disk."""

        def commit() -> None:
            with self._store.write() as transaction:
                change(transaction.system, *words)

        await asyncio.to_thread(commit)


async def _nothing(_template: str) -> None:
    return


def _succeeded(task: asyncio.Task[bool]) -> bool:
    return not task.cancelled() and task.result()
