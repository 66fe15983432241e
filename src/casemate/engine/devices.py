"""Devices of the host given to running qubes: attach, detach, what is due at a start, what comes and goes.

Knows no class of devices; ``casemate.devices`` has those. Who has which device is asked of the hypervisor each time, so
that it is right after a crash of this process too. Lock order: the qube's operation lock, then ``_taking``, which keeps
two qubes from getting one device.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from uuid import UUID

from casemate.devices.device_class import Attachment, DeviceClass, HostDevice, Machine, Opening, Provider
from casemate.engine.accounts import Accounts
from casemate.engine.bus import Bus
from casemate.engine.operations import OperationLocks
from casemate.engine.power_table import Command, decide
from casemate.engine.states import States
from casemate.engine.steps import Start
from casemate.host.hypervisor import PowerState
from casemate.host.uevents import DeviceEvents
from casemate.model.devices import ANY, Assignment, DeviceRef, denies
from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.admin import ADMIN
from casemate.wire.errors import (
    CasemateError,
    DeviceAlreadyAttachedError,
    DeviceDeniedError,
    DeviceNotAssignedError,
    DeviceNotFoundError,
    DeviceUnrecognizedError,
    NotFoundError,
    NotImplementedHereError,
    StartError,
    ValueInvalidError,
    printable,
)

log = logging.getLogger(__name__)

AttachEvent = type[ev.DevicePreAttach] | type[ev.DeviceAttach]

_AT_START = ("required", "auto-attach")
CONTROLLER_FEATURE = "usb-controller"
"""A qube with this feature has a USB controller from its start, so that USB devices can be attached while it runs. So
has one that a USB device is assigned to. Others have none: each emulated device is a way to attack the host."""


class Devices:
    """The host's devices, who has them, and who is to get them. Owns the providers and what was seen last."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        states: States,
        locks: OperationLocks,
        accounts: Accounts,
        classes: Mapping[str, DeviceClass],
        opening: Opening,
    ) -> None:
        """``classes``: by name, as ``casemate.devices.load`` returns them; ``opening`` is what they work with."""
        self._store = store
        self._bus = bus
        self._states = states
        self._locks = locks
        self._accounts = accounts
        self._classes = classes
        self._providers: Mapping[str, Provider] = {name: one.open(opening) for name, one in classes.items()}
        self._taking = asyncio.Lock()
        self._seen: dict[str, dict[str, HostDevice]] = {}
        self._events: DeviceEvents | None = None
        self._looking: asyncio.Future[None] | None = None
        self._again = False

    # -- who has what

    def check(self, device: DeviceRef, options: Mapping[str, str]) -> None:
        """NotImplementedHereError for a device that no qube can be given here, ValueInvalidError for wrong options."""
        found = self._classes.get(device.devclass)
        if found is None:
            raise NotImplementedHereError(f"There are no {device.devclass} devices here")
        if found.refusal:
            raise NotImplementedHereError(found.refusal)
        if device.backend != ADMIN:
            raise NotImplementedHereError(
                f"{device.location()}: devices of other qubes cannot be attached here, only those of {ADMIN}"
            )
        found.check(options)

    def controllers(self, domain: Domain) -> frozenset[str]:
        """The controllers that a qube's machine must have from its start, for devices that it gets or may get."""
        found = {
            self._classes[assignment.device.devclass].controller
            for assignment in domain.devices
            if assignment.device.devclass in self._classes
        }
        if domain.features.get(CONTROLLER_FEATURE):
            found.add("usb")
        return frozenset(found - {""})

    def offered(self, devclass: str) -> Sequence[HostDevice]:
        """The devices of a class that this host could give away; none for a class that it does not know."""
        provider = self._providers.get(devclass)
        return provider.list() if provider is not None else []

    async def attached(self, domain: Domain, devclass: str) -> Sequence[Attachment]:
        """The devices of a class that a qube has now; none for one that is halted."""
        return (await self.held(devclass)).get(domain.uuid, [])

    async def held(self, devclass: str) -> Mapping[UUID, Sequence[Attachment]]:
        """The devices of a class that machines have now, by the UUIDs of their qubes."""
        provider = self._providers.get(devclass)
        return await provider.attached() if provider is not None else {}

    async def _holders(self) -> dict[str, str]:
        """Everything that some machine has, and the machine's qube."""
        system = self._store.snapshot()
        found = {}
        for provider in self._providers.values():
            for uuid, attachments in (await provider.attached()).items():
                for one in attachments:
                    found[one.resource] = _name_of(system.domains.by_uuid, uuid)
        return found

    # -- attach and detach

    async def attach(self, name: str, device: DeviceRef, options: Mapping[str, str]) -> None:
        """Give a running qube a device of the host."""
        async with self._locks[name]:
            domain = self._running(name)
            found = self._find(device, options)
            await self._give(domain, found, options, partial(self._say_attach, name, found, options))

    async def _give(
        self,
        domain: Domain,
        device: HostDevice,
        options: Mapping[str, str],
        say: Callable[[AttachEvent], None] = lambda event: None,
    ) -> None:
        """Attach a device that was found; ``say`` announces the events that it is called with."""
        denied = denies(domain.text("devices_denied"), device.interfaces)
        if denied:
            raise DeviceDeniedError(f"{domain.name} may not have devices of kind {denied} (devices_denied)")
        provider = self._providers[device.klass]
        async with self._taking:
            holders = await self._holders()
            for resource in sorted(provider.resources(device) & holders.keys()):
                kind, _, which = resource.partition(":")
                raise DeviceAlreadyAttachedError(f"{kind} {which} is attached to {holders[resource]} already")
            await provider.attach(self._machine(domain), device, options, lambda: say(ev.DevicePreAttach))
        say(ev.DeviceAttach)

    async def detach(self, name: str, device: DeviceRef) -> None:
        """Take a device from a running qube; DeviceBusyError when its guest does not let go."""
        async with self._locks[name]:
            domain = self._running(name)
            for one in await self.attached(domain, device.devclass):
                if device.backend == ADMIN and device.port == one.port:
                    break
            else:
                raise DeviceNotAssignedError(f"{device.devclass} device {device.location()} is not attached to {name}")
            self._bus.say(ev.DevicePreDetach(name, device.devclass, device.location()))
            await self._providers[device.devclass].detach(self._machine(domain), one)
            self._bus.say(ev.DeviceDetach(name, device.devclass, device.location()))

    def _machine(self, domain: Domain) -> Machine:
        owner = self._accounts.of(domain)
        return Machine(domain.name, domain.uuid, owner.uid if owner is not None else None)

    def _running(self, name: str) -> Domain:
        domain = self._store.snapshot().domains[name]
        decide(Command.DEVICE, name, self._states.of(name))
        return domain

    def _say_attach(self, name: str, device: HostDevice, options: Mapping[str, str], event: AttachEvent) -> None:
        self._bus.say(event(name, device.klass, f"{ADMIN}:{device.port}:{device.ident}", dict(options)))

    def _find(self, device: DeviceRef, options: Mapping[str, str]) -> HostDevice:
        """The one device of the host that is meant; it can be given to a qube with these options."""
        self.check(device, options)
        found = [one for one in self.offered(device.devclass) if device.port in (ANY, one.port)]
        if not found:
            raise DeviceNotFoundError(f"{ADMIN} offers no {device.devclass} device {device.port}, or uses it itself")
        same = [one for one in found if device.ident in (ANY, one.ident)]
        if not same:
            raise DeviceUnrecognizedError(
                f"{device.devclass} device {device.location()} is another one than {printable(device.ident, 130)}"
            )
        if len(same) > 1:
            raise ValueInvalidError(
                f"There are {len(same)} {device.devclass} devices {device.ident}: name the port too"
            )
        return same[0]

    # -- start and stop

    async def up(self, start: Start) -> None:
        """A step of a start: what the qube must have, and what it gets if it is there, before its machine runs."""
        for assignment in start.domain.devices:
            if assignment.mode not in _AT_START:
                continue
            device, options = assignment.device, dict(assignment.options)
            try:
                found = self._find(device, options)
                await self._give(start.domain, found, options)
            except CasemateError as error:
                if assignment.mode == "required":
                    raise StartError(
                        f"Cannot start {start.domain.name}: it requires {device.devclass} device {device}: {error}"
                    ) from error
                log.warning("%s starts without %s device %s: %s", start.domain.name, device.devclass, device, error)
            else:
                # Announced when the start is over: clients know no devices of a qube that does not run yet.
                start.later.append(partial(self._say_attach, start.domain.name, found, options, ev.DeviceAttach))

    async def down(self, domain: Domain) -> None:
        """The way back: the machine has ended, so it uses nothing that its user may open."""
        machine = self._machine(domain)
        for provider in self._providers.values():
            provider.release(machine)

    # -- what comes and goes by itself

    async def watch(self) -> None:
        """Announce from now on what comes and goes."""
        await self.look()
        subsystems = {name for one in self._classes.values() for name in one.subsystems}
        self._events = DeviceEvents(subsystems, self._changed)

    def _changed(self) -> None:
        if self._looking is not None and not self._looking.done():
            self._again = True
            return
        self._looking = asyncio.ensure_future(self._look_guarded())

    async def _look_guarded(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            try:
                await self.look()
            except Exception:
                log.exception("looking for devices failed")

    def close(self) -> None:
        """Watch no more."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._looking is not None:
            self._looking.cancel()

    async def look(self) -> None:
        """Announce what has come and gone since the last look; the first look announces nothing."""
        for devclass, provider in self._providers.items():
            now = {device.port: device for device in await asyncio.to_thread(provider.list)}
            before = self._seen.get(devclass)
            self._seen[devclass] = now
            if before is None:
                continue
            gone = [port for port, device in before.items() if now.get(port) != device]
            come = [device for port, device in now.items() if before.get(port) != device]
            for port in gone:
                self._bus.say(ev.DeviceRemoved(ADMIN, devclass, f"{ADMIN}:{port}"))
            for device in come:
                self._bus.say(ev.DeviceAdded(ADMIN, devclass, f"{ADMIN}:{device.port}:{device.ident}"))
            if gone or come:
                self._bus.say(ev.DeviceListChange(ADMIN, devclass))
            for device in come:
                await self._give_to_who_waits(device)

    async def _give_to_who_waits(self, device: HostDevice) -> None:
        """A device has come: the running qube that it is assigned to gets it."""
        for domain in self._store.snapshot().domains.values():
            for assignment in domain.devices:
                if not _means(assignment, device) or self._states.of(domain.name) is not PowerState.RUNNING:
                    continue
                exact = DeviceRef(device.klass, ADMIN, device.port, device.ident)
                try:
                    if assignment.mode not in _AT_START:
                        log.warning("%s: attach %s by hand: nobody can be asked here", domain.name, exact)
                    elif not self._providers[device.klass].resources(device) & (await self._holders()).keys():
                        await self.attach(domain.name, exact, dict(assignment.options))
                except CasemateError as error:
                    log.warning("%s: %s", domain.name, error)


def _means(assignment: Assignment, device: HostDevice) -> bool:
    ref = assignment.device
    return (
        ref.devclass == device.klass
        and ref.backend == ADMIN
        and ref.port in (ANY, device.port)
        and ref.ident in (ANY, device.ident)
    )


def _name_of(by_uuid: Callable[[UUID], Domain], uuid: UUID) -> str:
    try:
        return by_uuid(uuid).name
    except NotFoundError:
        return "another machine"
