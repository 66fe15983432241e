"""Devices of the host given to running qubes: attach, detach, and what is due at a start.

Who has which device is asked of the hypervisor each time, so that it is right after a crash of this process too.
Lock order: the qube's operation lock, then ``_taking``, which keeps two qubes from getting one device.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

from casemate.engine.accounts import Accounts
from casemate.engine.bus import Bus
from casemate.engine.machine import TARGETS
from casemate.engine.operations import OperationLocks
from casemate.engine.states import States
from casemate.engine.steps import Start
from casemate.host import qemu_access
from casemate.host.devices import HostDevice, HostDevices
from casemate.host.hypervisor import HostDisk, Hypervisor, PowerState
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
    NotRunningError,
    StartError,
    ValueInvalidError,
    printable,
)

log = logging.getLogger(__name__)

BLOCK = "block"
_TARGET = re.compile(r"(xv|v|s)d[a-z]")
_YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_OPTIONS = {"read-only", "frontend-dev", "devtype"}
AttachEvent = type[ev.DevicePreAttach] | type[ev.DeviceAttach]

_AT_START = ("required", "auto-attach")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A device that a running qube has."""

    device: DeviceRef
    disk: HostDisk

    def options(self) -> dict[str, str]:
        """As they would be given to attach it so."""
        return {
            "devtype": "cdrom" if self.disk.cdrom else "disk",
            "frontend-dev": self.disk.target,
            "read-only": "yes" if self.disk.readonly else "no",
        }


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """How a block device is attached. ``readonly`` None: as the device is."""

    readonly: bool | None = None
    target: str | None = None
    cdrom: bool = False

    @classmethod
    def of(cls, given: Mapping[str, str]) -> BlockOptions:
        """From the options of a call; ValueInvalidError names what is wrong."""
        unknown = sorted(given.keys() - _OPTIONS)
        if unknown:
            raise ValueInvalidError(f"A block device has no option {printable(unknown[0], 40)!r}")
        devtype, target = given.get("devtype", "disk"), given.get("frontend-dev")
        if devtype not in ("disk", "cdrom"):
            raise ValueInvalidError("devtype is disk or cdrom")
        if target is not None and not _TARGET.fullmatch(target):
            raise ValueInvalidError("frontend-dev is the name of a disk, such as vdi")
        word = given.get("read-only")
        if word is not None and word.lower() not in _YES:
            raise ValueInvalidError("read-only is yes or no")
        readonly = None if word is None else _YES[word.lower()]
        if devtype == "cdrom" and readonly is False:
            raise ValueInvalidError("a CD-ROM cannot be written")
        return cls(True if devtype == "cdrom" else readonly, target, devtype == "cdrom")


class Devices:
    """The host's devices, who has them, and who is to get them."""

    def __init__(
        self,
        store: Store,
        hypervisor: Hypervisor,
        bus: Bus,
        states: States,
        locks: OperationLocks,
        host: HostDevices,
        accounts: Accounts,
    ) -> None:
        self._store = store
        self._hypervisor = hypervisor
        self._bus = bus
        self._states = states
        self._locks = locks
        self.host = host
        self._taking = asyncio.Lock()
        self._accounts = accounts
        self._seen: dict[str, dict[str, HostDevice]] = {}
        self._events: DeviceEvents | None = None
        self._looking: asyncio.Future[None] | None = None
        self._again = False

    # -- who has what

    def offered(self, devclass: str) -> list[HostDevice]:
        """The devices of a class that this host could give away; none for a class that it does not know."""
        return self.host.list(devclass) if devclass in HostDevices.CLASSES else []

    async def attached(self, domain: Domain, devclass: str) -> list[Attachment]:
        """The devices of a class that a qube has now; none for one that is halted."""
        if devclass != BLOCK:
            return []
        disks = (await self._hypervisor.host_disks()).get(domain.uuid, ())
        known = {device.port: device for device in self.host.list(BLOCK)} if disks else {}
        found = []
        for disk in disks:
            port = self.host.port_of(disk.node)
            ident = known[port].ident if port in known else ANY
            found.append(Attachment(DeviceRef(BLOCK, ADMIN, port, ident), disk))
        return found

    async def _holders(self) -> dict[str, str]:
        """Ports of block devices that some qube has, and the qube."""
        system = self._store.snapshot()
        found = {}
        for uuid, disks in (await self._hypervisor.host_disks()).items():
            for disk in disks:
                found[self.host.port_of(disk.node)] = _name_of(system.domains.by_uuid, uuid)
        return found

    # -- attach and detach

    async def attach(self, name: str, device: DeviceRef, options: Mapping[str, str]) -> None:
        """Give a running qube a device of the host."""
        async with self._locks[name]:
            domain = self._running(name)
            wanted = _options(device, options)
            found = self._find(device)
            await self._give(domain, found, wanted, partial(self._say_attach, name, found, options))

    async def _give(
        self,
        domain: Domain,
        found: HostDevice,
        options: BlockOptions,
        say: Callable[[AttachEvent], None] | None = None,
    ) -> None:
        """Attach a device that was found; ``say`` announces the events that it is called with."""
        denied = denies(domain.text("devices_denied"), found.interfaces)
        if denied:
            raise DeviceDeniedError(f"{domain.name} may not have devices of kind {denied} (devices_denied)")
        if found.readonly and options.readonly is False:
            raise ValueInvalidError(f"{found.port} can only be read")
        readonly = found.readonly if options.readonly is None else options.readonly
        async with self._taking:
            holders = await self._holders()
            for port in _overlapping(found, self.host.list(BLOCK)):
                if port in holders:
                    raise DeviceAlreadyAttachedError(f"block device {port} is attached to {holders[port]} already")
            node = self.host.node(found)
            taken = {disk.target for disk in (await self._hypervisor.host_disks()).get(domain.uuid, ())}
            taken |= set(TARGETS.values())
            target = options.target or next(f"vd{c}" for c in "defghijklmnopqrstuvwxyz" if f"vd{c}" not in taken)
            if target in taken:
                raise ValueInvalidError(f"{domain.name} has a disk {target} already")
            if say is not None:
                say(ev.DevicePreAttach)
            owner = self._accounts.of(domain)
            if owner is not None:
                qemu_access.lend(node, owner.uid, readonly)
            try:
                await self._hypervisor.attach_disk(domain.uuid, HostDisk(node, target, readonly, options.cdrom))
            except BaseException:
                self._return(domain, node)
                raise
        if say is not None:
            say(ev.DeviceAttach)

    async def detach(self, name: str, device: DeviceRef) -> None:
        """Take a device from a running qube; DeviceBusyError when its guest does not let go."""
        async with self._locks[name]:
            domain = self._running(name)
            for one in await self.attached(domain, device.devclass):
                if one.device.backend == device.backend and one.device.port == device.port:
                    break
            else:
                raise DeviceNotAssignedError(f"{device.devclass} device {device.place()} is not attached to {name}")
            self._bus.say(ev.DevicePreDetach(name, device.devclass, device.place()))
            await self._hypervisor.detach_disk(domain.uuid, one.disk.target)
            self._return(domain, one.disk.node)
            self._bus.say(ev.DeviceDetach(name, device.devclass, device.place()))

    def _return(self, domain: Domain, node: Path) -> None:
        """The qube's user has nothing to do with the device any more."""
        owner = self._accounts.of(domain)
        if owner is not None:
            qemu_access.take_back(node, owner.uid)

    def _running(self, name: str) -> Domain:
        domain = self._store.snapshot().domains.get(name)
        if domain is None:
            raise NotFoundError(name)
        if self._states.of(name) not in (PowerState.RUNNING, PowerState.PAUSED):
            raise NotRunningError(f"{name} is not running")
        return domain

    def _say_attach(self, name: str, device: HostDevice, options: Mapping[str, str], event: AttachEvent) -> None:
        self._bus.say(event(name, device.klass, f"{ADMIN}:{device.port}:{device.ident}", dict(options)))

    def _find(self, device: DeviceRef) -> HostDevice:
        """The one device of the host that is meant; it can be given to a qube."""
        check_supported(device)
        found = [one for one in self.host.list(device.devclass) if device.port in (ANY, one.port)]
        if not found:
            raise DeviceNotFoundError(f"{ADMIN} offers no {device.devclass} device {device.port}, or uses it itself")
        same = [one for one in found if device.ident in (ANY, one.ident)]
        if not same:
            raise DeviceUnrecognizedError(
                f"{device.devclass} device {device.place()} is another one than {printable(device.ident, 130)}"
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
            device = assignment.device
            try:
                found = self._find(device)
                await self._give(start.domain, found, BlockOptions.of(dict(assignment.options)))
            except CasemateError as error:
                if assignment.mode == "required":
                    raise StartError(
                        f"Cannot start {start.domain.name}: it requires {device.devclass} device {device}: {error}"
                    ) from error
                log.warning("%s starts without %s device %s: %s", start.domain.name, device.devclass, device, error)
            else:
                say = partial(self._say_attach, start.domain.name, found, dict(assignment.options), ev.DeviceAttach)
                start.later.append(say)

    async def down(self, domain: Domain) -> None:
        """The way back: the machine is gone, so nothing that its user may open is in use by it."""
        if self._accounts.of(domain) is None:
            return
        for device in self.host.list(BLOCK):
            self._return(domain, self.host.path(device.port))

    # -- what comes and goes by itself

    async def watch(self) -> None:
        """Tell from now on what comes and goes."""
        await self.look()
        self._events = DeviceEvents(self._changed)

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
        """Tell what has come and gone since the last look; the first look tells nothing."""
        for devclass in HostDevices.CLASSES:
            now = {device.port: device for device in await asyncio.to_thread(self.host.list, devclass)}
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
                    elif device.port not in await self._holders():
                        await self.attach(domain.name, exact, dict(assignment.options))
                except CasemateError as error:
                    log.warning("%s: %s", domain.name, error)


def check_supported(device: DeviceRef) -> None:
    """NotImplementedHereError for a device that no qube can be given on this host."""
    if device.devclass != BLOCK:
        raise NotImplementedHereError(
            f"{device.devclass} devices cannot be given to qubes here: only block devices of {ADMIN} can"
        )
    if device.backend != ADMIN:
        raise NotImplementedHereError(
            f"{device.place()}: block devices of other qubes cannot be attached here, only those of {ADMIN}"
        )


def _options(device: DeviceRef, options: Mapping[str, str]) -> BlockOptions:
    check_supported(device)
    return BlockOptions.of(options)


def _means(assignment: Assignment, device: HostDevice) -> bool:
    ref = assignment.device
    return (
        ref.devclass == device.klass
        and ref.backend == ADMIN
        and ref.port in (ANY, device.port)
        and ref.ident in (ANY, device.ident)
    )


def _overlapping(device: HostDevice, others: Collection[HostDevice]) -> set[str]:
    """Ports of what shares sectors with a device: itself, the disk that it is a part of, the parts of it, and other
    loop devices over the same file unless all can only read."""
    parts = {one.port for one in others if one.whole == device.port}
    twins = {
        one.port for one in others if device.file and one.file == device.file and not (one.readonly and device.readonly)
    }
    return {device.port, *parts, *twins, *({device.whole} if device.whole else ())}


def _name_of(by_uuid: Callable[[UUID], Domain], uuid: UUID) -> str:
    try:
        return by_uuid(uuid).name
    except NotFoundError:
        return "another machine"
