"""What people and programs ask of a qube's machine: start, shutdown, kill, pause, unpause, console.

Which of these can be asked in which state stands in ``power_table.py``.
"""

from __future__ import annotations

import asyncio
import logging
import re

from casemate.engine.bus import Bus
from casemate.engine.guests import Guests
from casemate.engine.lifecycle import Lifecycle
from casemate.engine.links import Links
from casemate.engine.operations import OperationLocks
from casemate.engine.power_table import Command, Way, decide
from casemate.engine.states import STUCK, States
from casemate.host.hypervisor import Hypervisor, PowerState
from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.errors import (
    DisconnectedError,
    InUseError,
    NotRunningError,
    NotStartedError,
    QubeError,
    ShutdownTimeoutError,
    printable,
)

log = logging.getLogger(__name__)

_TERMINAL = re.compile(r"/dev/pts/[0-9]{1,7}")
_LOOK_SECONDS = 0.3
"""Seconds between two looks at a machine that has just been resumed, while its clock is set."""
LINK_SECONDS = 10
"""Seconds that a link has for an answer. It answers at once; more means that it hangs."""


class Power:
    """Checks what is asked, announces it and carries it out.

    Owns nothing: a qube's state is in the table of states, and the way up and down is the lifecycle's.
    """

    def __init__(
        self,
        store: Store,
        hypervisor: Hypervisor,
        links: Links,
        bus: Bus,
        states: States,
        locks: OperationLocks,
        lifecycle: Lifecycle,
        guests: Guests,
    ) -> None:
        self._store = store
        self._hypervisor = hypervisor
        self._links = links
        self._bus = bus
        self._states = states
        self._locks = locks
        self._lifecycle = lifecycle
        self._guests = guests

    def is_running(self, name: str) -> bool:
        """Whether the qube runs (not paused, not on its way up or down)."""
        return self._states.of(name) is PowerState.RUNNING

    async def start(self, name: str) -> None:
        """Start a qube and wait until its agent answers. One that already runs is a success; so is a second start
        of one that is starting."""
        await self._lifecycle.start(name)

    async def shutdown(self, name: str, force: bool = False, wait: bool = False) -> None:
        """Ask the guest to power off; with ``wait`` return when it has, ShutdownTimeoutError if it does not in time."""
        domain = self._machine(name)
        if decide(Command.SHUTDOWN, name, self._states.of(name)) is Way.ALREADY:
            await self._end_of_shutdown(domain, wait)
            return
        if not force:
            users = [d.name for d in domain.connected_vms() if self._states.of(d.name) is not PowerState.HALTED]
            if users:
                raise InUseError(f"{name} provides network to running qubes: {', '.join(sorted(users))}")
        self._bus.say(ev.DomainPreShutdown(name, force))
        self._states.put(name, domain.uuid, PowerState.HALTING)
        try:
            await self._links.ask(name, LINK_SECONDS, op="poweroff")
        except DisconnectedError as error:
            if self._states.of(name) is PowerState.HALTING:
                self._states.put(name, domain.uuid, PowerState.RUNNING)
                self._bus.say(ev.DomainShutdownFailed(name, printable(str(error))))
                raise NotRunningError(f"{name} cannot be asked to shut down: {error}") from None
        await self._end_of_shutdown(domain, wait)

    async def _end_of_shutdown(self, domain: Domain, wait: bool) -> None:
        """Return at once, or when the qube has halted; ShutdownTimeoutError."""
        if not wait:
            return
        try:
            await self._lifecycle.wait_until_halted(domain.name, domain.shutdown_timeout)
        except TimeoutError:
            if self._states.of(domain.name) is PowerState.HALTING:
                self._states.put(domain.name, domain.uuid, PowerState.RUNNING)
            raise ShutdownTimeoutError(
                f"{domain.name} did not shut down within {domain.shutdown_timeout} seconds"
            ) from None

    async def kill(self, name: str) -> None:
        """End the machine at once."""
        domain = self._machine(name)
        decide(Command.KILL, name, self._states.of(name))
        await self._hypervisor.destroy(domain.uuid)
        await self._lifecycle.machine_ended(name)

    async def pause(self, name: str) -> None:
        """Stop the machine's time."""
        domain = self._machine(name)
        if decide(Command.PAUSE, name, self._states.of(name)) is Way.ALREADY:
            return
        self._bus.say(ev.DomainPrePaused(name))
        async with self._locks[name]:
            decide(Command.PAUSE, name, self._states.of(name))  # it may have ended, or be on its way, since
            await self._hypervisor.pause(domain.uuid)
            self._states.put(name, domain.uuid, PowerState.PAUSED)
        self._bus.say(ev.DomainPaused(name))

    async def unpause(self, name: str) -> None:
        """Let a paused machine go on, with its clock set: it stood still meanwhile."""
        domain = self._machine(name)
        decide(Command.UNPAUSE, name, self._states.of(name))
        self._bus.say(ev.DomainPreUnpaused(name))
        async with self._locks[name]:
            await self._hypervisor.resume(domain.uuid)
            self._states.put(name, domain.uuid, PowerState.RUNNING)
        clock = asyncio.create_task(self._guests.set_clock(name))
        try:
            while True:
                done, _waiting = await asyncio.wait({clock}, timeout=_LOOK_SECONDS)
                # A machine that was paused by a failing write tries it again at once, and may pause again.
                info = await self._hypervisor.info(domain.uuid)
                if info is not None and info.state is PowerState.PAUSED:
                    self._states.put(name, domain.uuid, PowerState.PAUSED)
                    self._states.paused_by_itself(name, STUCK)
                    raise QubeError(f"{name} has paused again at once: {STUCK}. Make room, then unpause it")
                if done:
                    break
            clock.result()
        except (DisconnectedError, TimeoutError) as error:
            # The qube goes on all the same: it may have no such service, or be too busy to answer.
            log.warning("%s: its clock was not set after the pause: %s", name, error or "no answer")
        finally:
            clock.cancel()
        self._bus.say(ev.DomainUnpaused(name))

    async def console(self, name: str) -> str:
        """The path of a terminal that is the qube's serial console, from the moment its machine exists."""
        decide(Command.CONSOLE, name, self._states.of(name))
        try:
            answer = await self._links.ask(name, LINK_SECONDS, op="terminal")
        except DisconnectedError as error:
            raise NotRunningError(f"{name} has no console yet, or no more: {error}") from None
        path = answer.get("path")
        if not isinstance(path, str) or not _TERMINAL.fullmatch(path):
            raise NotRunningError(f"{name} has no console: {printable(str(answer.get('why', 'no terminal')), 200)}")
        return path

    def _machine(self, name: str) -> Domain:
        domain = self._store.snapshot().domains[name]
        if domain.klass == "AdminVM":
            raise NotStartedError(f"{name} is this host")
        return domain
