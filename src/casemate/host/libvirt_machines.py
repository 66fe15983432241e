"""Machines through libvirt, be it embedded in this process or a daemon of the user or of the system.

One file although it is long: it is the whole contract of ``hypervisor.Hypervisor``, one method after the other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import libvirt

from casemate.host import libvirt_embed, libvirt_images, qemu_access
from casemate.host.domain_xml_disk import disk_xml, disks_of, element_of, has_usb
from casemate.host.domain_xml_nic import element_of_nic, nic_xml, nics_of
from casemate.host.domain_xml_qemu import HOTPLUG_PORTS, USB_PORTS, qemu_xml
from casemate.host.guest_memory import GuestMemories, make_launcher, waiting_for_launcher
from casemate.host.hypervisor import (
    EventKind,
    HostDisk,
    Hypervisor,
    MachineEvent,
    MachineInfo,
    MachineSpec,
    Nic,
    PowerState,
)
from casemate.host.libvirt_connection import EventThread, LibvirtConnection
from casemate.host.libvirt_errors import code_of
from casemate.host.libvirt_states import CRASHES, EVENTS, STATES, STATS, UNDEFINE
from casemate.host.memory_map import find_memory
from casemate.host.orphans import is_subreaper, watch_orphans
from casemate.host.tsc import with_known_frequency
from casemate.settings import Settings
from casemate.wire.errors import DeviceBusyError, HypervisorError, NotHaltedError

log = logging.getLogger(__name__)

T = TypeVar("T")

_RELEASE_SECONDS = 10.0
"""Seconds that a guest has to release a device. Emulated guests need half a second."""
_NO_SLOT = "No more available PCI slots"
_NO_PORT = {_NO_SLOT: HOTPLUG_PORTS, "No free USB ports": USB_PORTS}
"""What libvirt says when all ports of a bus are taken, and how many there are; it has no error code for that."""
_ABSENT = (libvirt.VIR_ERR_NO_DOMAIN,)
"""Codes that mean: libvirt does not know the machine."""
_OFF = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
"""Codes that mean: the machine does not run."""


class LibvirtMachines(Hypervisor):
    """Machines of one installation, by the prefix of their names. Make one with connect()."""

    undefine_flags: int = UNDEFINE
    """What is removed with a definition."""

    def __init__(
        self,
        uri: str,
        prefix: str,
        logs: Path | None = None,
        launcher: Path | None = None,
        pids: Path | None = None,
    ) -> None:
        """``logs``: where the driver keeps a log of each machine for us alone: we remove it with the machine.

        ``launcher``: what libvirt starts for a machine whose memory is a file; None where no machine can have that.
        ``pids``: where the driver writes the pid of each machine's QEMU, where that is ours to read.
        """
        self._pids = pids
        self._prefix = prefix
        self._logs = logs
        self._launcher = launcher
        self._memories = GuestMemories()
        self._sizes_to_tell: dict[UUID, list[str]] = {}
        """Disks of machines that go on from an image and have not run yet."""
        self._loop = asyncio.get_running_loop()
        self._libvirt = LibvirtConnection(uri, self._hear)
        self._callbacks: list[Callable[[MachineEvent], None]] = []

    async def open(self) -> None:
        """Open the connection; errors say which libvirt was meant."""
        await self._libvirt.open()

    async def close(self) -> None:
        """Let go of libvirt; machines run on."""
        self._callbacks.clear()
        await self._libvirt.close()

    # -- machines

    async def define(self, spec: MachineSpec) -> None:
        """Keep a definition. A halted machine of another UUID that has the name is undefined: its qube is gone."""
        xml = self._xml(spec)
        await self._libvirt.call(f"define {spec.name}", lambda connection: self._define(connection, spec, xml))

    async def undefine(self, uuid: UUID) -> None:
        """Remove a definition; absent is fine."""

        def work(connection: Any) -> None:
            try:
                domain = connection.lookupByUUID(uuid.bytes)
                domain.undefineFlags(self.undefine_flags)
            except libvirt.libvirtError as error:
                if code_of(error) not in _ABSENT:
                    raise
                return
            if self._logs is not None:
                (self._logs / f"{domain.name()}.log").unlink(missing_ok=True)

        await self._libvirt.call("undefine a machine", work)

    async def start_paused(self, spec: MachineSpec) -> None:
        """Define anew and create, paused; then its sockets belong to the machine's user."""

        def work(connection: Any) -> None:
            domain = self._define(connection, spec, self._xml(with_known_frequency(spec)))
            if domain.isActive():
                raise NotHaltedError(f"{spec.name} is running")
            qemu_access.grant(spec)
            with self._memory(spec):
                self._create(domain)
            try:
                qemu_access.hand_over(spec)
                if spec.memory is not None and spec.memory.image is not None:
                    libvirt_images.load_state(domain, spec.memory.image)
                    self._sizes_to_tell[spec.uuid] = [disk.target for disk in spec.disks if not disk.scratch]
            except OSError as error:
                domain.destroy()
                raise HypervisorError(f"Cannot start {spec.name}: {error}") from error
            finally:
                if spec.memory is not None and spec.memory.image is not None:
                    self._memories.drop_own(spec.uuid)  # QEMU has it; nobody saves it

        await self._libvirt.call(f"start {spec.name}", work)

    @contextmanager
    def _memory(self, spec: MachineSpec) -> Iterator[None]:
        """While the block runs, the machine's QEMU can get its memory, if that is a file."""
        if spec.memory is None:
            yield
            return
        if self._launcher is None:
            raise HypervisorError(f"{spec.name} cannot have a file as its memory: libvirt is not embedded here")
        try:
            memory = self._memories.for_machine(spec)
            try:
                with waiting_for_launcher(spec, memory):
                    yield
            finally:
                os.close(memory)
        except OSError as error:
            raise HypervisorError(f"Cannot start {spec.name}: its memory: {error}") from error

    async def save_image(self, uuid: UUID, directory: Path) -> None:
        """Stop the machine, then the state of its devices, then its memory, into the directory."""

        def work(connection: Any) -> None:
            domain = connection.lookupByUUID(uuid.bytes)
            domain.suspend()
            try:
                libvirt_images.save_state(domain, directory)
                self._memories.save(uuid, directory)
            except OSError as error:
                raise HypervisorError(f"The image of {domain.name()} cannot be saved: {error.strerror}") from error

        await self._libvirt.call("save an image of a machine", work)

    async def fork_image(self, uuid: UUID, directory: Path) -> None:
        """Stop the machine, then the state of its devices into the directory, then a copy of its memory."""

        def work(connection: Any) -> None:
            domain = connection.lookupByUUID(uuid.bytes)
            name = domain.name()
            if self._pids is None:
                raise HypervisorError(f"{name} cannot be copied: libvirt is not embedded here")
            try:
                pid = int((self._pids / f"{name}.pid").read_text())
                memory = find_memory(pid, domain.info()[1] << 10)
                domain.suspend()
                libvirt_images.save_devices(domain, directory)
                self._memories.fork(memory, directory)
            except OSError as error:
                raise HypervisorError(f"{name} cannot be copied: {error.strerror or error}") from error

        await self._libvirt.call("copy a machine", work)

    async def keep_fork(self, directory: Path) -> None:
        """Write the copy of a machine's memory beside the state of its devices."""

        def work(_connection: Any) -> None:
            try:
                self._memories.keep_fork(directory)
            except OSError as error:
                raise HypervisorError(f"The copy of the machine cannot be kept: {error.strerror}") from error

        await self._libvirt.call("keep a copy of a machine", work)

    async def release_image(self, directory: Path) -> None:
        """Close our descriptor of the image's memory."""
        self._memories.release(directory)

    def _create(self, domain: Any) -> None:
        """Create a defined machine, paused: libvirt's drivers differ in how."""
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def _xml(self, spec: MachineSpec) -> str:
        libvirt_embed.check_socket_path(spec.channel, f"the channel of {spec.name}")
        libvirt_embed.check_socket_path(spec.console, f"the console of {spec.name}")
        return qemu_xml(spec, self._prefix, self._launcher)

    def _define(self, connection: Any, spec: MachineSpec, xml: str) -> Any:
        try:
            return connection.defineXMLFlags(xml, 0)
        except libvirt.libvirtError:
            if not self._undefine_namesake(connection, spec):
                raise
        return connection.defineXMLFlags(xml, 0)

    def _undefine_namesake(self, connection: Any, spec: MachineSpec) -> bool:
        """Undefine a halted machine with our name but another UUID: left by a removal that was cut short."""
        try:
            namesake = connection.lookupByName(self._prefix + spec.name)
        except libvirt.libvirtError:
            return False
        if namesake.UUID() == spec.uuid.bytes or namesake.isActive():
            return False
        log.warning("undefining the machine %s of an earlier qube of that name", namesake.name())
        namesake.undefineFlags(self.undefine_flags)
        return True

    async def resume(self, uuid: UUID) -> None:
        """Let a paused machine run. One that goes on from an image is told how large its own disks are."""

        def work(connection: Any) -> None:
            domain = connection.lookupByUUID(uuid.bytes)
            # libvirt refuses this for a machine that runs, which whoever takes something half done back cannot know.
            if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                domain.resume()
            # Not before: QEMU 10 has the disks of a loaded machine inactive until it runs.
            libvirt_images.tell_sizes(domain, self._sizes_to_tell.pop(uuid, []))

        await self._libvirt.call("resume a machine", work)

    async def pause(self, uuid: UUID) -> None:
        """Stop a machine's processors."""
        await self._libvirt.call("pause a machine", lambda connection: connection.lookupByUUID(uuid.bytes).suspend())

    async def destroy(self, uuid: UUID) -> None:
        """End a machine at once; absent or off is fine."""

        def work(connection: Any) -> None:
            try:
                connection.lookupByUUID(uuid.bytes).destroy()
            except libvirt.libvirtError as error:
                if code_of(error) not in _OFF:
                    raise

        await self._libvirt.call("end a machine", work)
        self._memories.drop_own(uuid)
        self._sizes_to_tell.pop(uuid, None)

    async def info(self, uuid: UUID) -> MachineInfo | None:
        """One machine; None when libvirt does not know it."""

        def work(connection: Any) -> MachineInfo | None:
            try:
                domain = connection.lookupByUUID(uuid.bytes)
                found = connection.domainListGetStats([domain], STATS)
            except libvirt.libvirtError as error:
                if code_of(error) in _ABSENT:
                    return None
                raise
            return self._machine(*found[0]) if found else None

        return await self._libvirt.call("ask for a machine", work)

    async def list(self) -> list[MachineInfo]:
        """All machines of ours, in one call."""

        def work(connection: Any) -> list[MachineInfo]:
            machines = (self._machine(domain, stats) for domain, stats in connection.getAllDomainStats(STATS))
            return [machine for machine in machines if machine is not None]

        return await self._libvirt.call("list machines", work)

    def _machine(self, domain: Any, stats: dict[str, Any]) -> MachineInfo | None:
        name = domain.name()
        if not name.startswith(self._prefix):
            return None
        state = STATES.get(stats.get("state.state"), PowerState.NA)
        halted = state is PowerState.HALTED
        return MachineInfo(
            name=name.removeprefix(self._prefix),
            uuid=UUID(bytes=domain.UUID()),
            state=state,
            xid=domain.ID(),
            memory_kib=0 if halted else int(stats.get("balloon.current", 0)),
            cpu_time_ns=0 if halted else int(stats.get("cpu.time", 0)),
        )

    # -- block devices of the host

    async def attach_disk(self, uuid: UUID, disk: HostDisk) -> None:
        """Give a machine a block device, by a free port of its bus."""
        xml = disk_xml(disk)

        def work(connection: Any) -> None:
            domain = connection.lookupByUUID(uuid.bytes)
            if disk.bus == "usb" and not has_usb(domain.XMLDesc(0)):
                raise HypervisorError(
                    f"{disk.node} cannot be attached: the machine was started without a USB controller. Set feature "
                    "usb-controller of its qube to 1, or assign a USB device to it, and start it again"
                )
            try:
                domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                for message, most in _NO_PORT.items():
                    if message in str(error):
                        raise DeviceBusyError(
                            f"{disk.node} cannot be attached: a qube can have {most} {disk.bus} devices at a time"
                        ) from None
                raise

        await self._libvirt.call(f"attach {disk.node}", work)

    async def detach_disk(self, uuid: UUID, target: str) -> None:
        """Ask for a disk back and wait until QEMU has closed it."""
        await self._detach(uuid, lambda description: element_of(description, target), f"disk {target}")

    async def _detach(self, uuid: UUID, find: Callable[[str], str | None], what: str) -> None:
        """Ask the guest to let go of a device, and wait until the machine does not have it any more."""

        def work(connection: Any) -> None:
            try:
                domain = connection.lookupByUUID(uuid.bytes)
                end = time.monotonic() + _RELEASE_SECONDS
                asked = False
                while (xml := find(domain.XMLDesc(0))) is not None:
                    if time.monotonic() > end:
                        raise DeviceBusyError(f"The guest does not let go of its {what}")
                    if not asked:
                        domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
                        asked = True
                    else:
                        time.sleep(0.05)
            except libvirt.libvirtError as error:
                if code_of(error) not in (*_OFF, libvirt.VIR_ERR_DEVICE_MISSING):
                    raise

        await self._libvirt.call(f"detach {what}", work)

    async def resize_disk(self, uuid: UUID, target: str, size: int) -> None:
        """By QEMU itself, which has the file open."""

        def work(connection: Any) -> None:
            connection.lookupByUUID(uuid.bytes).blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

        await self._libvirt.call(f"enlarge disk {target}", work)

    # -- network interfaces

    async def attach_nic(self, uuid: UUID, nic: Nic) -> None:
        """Plug a network interface into a free port."""
        xml = nic_xml(nic)

        def work(connection: Any) -> None:
            domain = connection.lookupByUUID(uuid.bytes)
            if element_of_nic(domain.XMLDesc(0), nic.tap) is not None:
                return
            try:
                domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                if _NO_SLOT in str(error):
                    raise DeviceBusyError(
                        f"All {HOTPLUG_PORTS} ports of the machine are taken, so it cannot get a network interface: "
                        "detach a device, or start it again"
                    ) from None
                raise

        await self._libvirt.call("attach a network interface", work)

    async def detach_nic(self, uuid: UUID, tap: str) -> None:
        """Ask for a network interface back and wait until QEMU has closed its tap."""
        await self._detach(uuid, lambda description: element_of_nic(description, tap), "network interface")

    async def host_disks(self) -> Mapping[UUID, Sequence[HostDisk]]:
        """The block devices of the host that machines have, from the descriptions of those that run."""
        return await self._of_each("list attached disks", disks_of)

    async def nics(self) -> Mapping[UUID, Sequence[Nic]]:
        """The network interfaces that machines have."""
        return await self._of_each("list network interfaces", nics_of)

    async def _of_each(self, what: str, find: Callable[[str], Sequence[T]]) -> Mapping[UUID, Sequence[T]]:
        """What the description of each machine that runs says."""

        def work(connection: Any) -> Mapping[UUID, Sequence[T]]:
            found: dict[UUID, Sequence[T]] = {}
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                if not domain.name().startswith(self._prefix):
                    continue
                try:
                    found[UUID(bytes=domain.UUID())] = find(domain.XMLDesc(0))
                except libvirt.libvirtError as error:
                    if code_of(error) not in _OFF:
                        raise
            return found

        return await self._libvirt.call(what, work)

    # -- events

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> None:
        """Hear of every event of our machines, in the event loop's thread."""
        self._callbacks.append(callback)

    def _hear(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        """In libvirt's event thread."""
        kind = EVENTS.get(event)
        name = domain.name()
        if kind is None or not name.startswith(self._prefix):
            return
        if kind is EventKind.STOPPED and detail in CRASHES:
            kind = EventKind.CRASHED
        told = MachineEvent(name.removeprefix(self._prefix), UUID(bytes=domain.UUID()), kind)
        try:
            self._loop.call_soon_threadsafe(self._tell, told)
        except RuntimeError:
            pass  # the event loop has ended, so nobody listens

    def _tell(self, event: MachineEvent) -> None:
        for callback in self._callbacks:
            callback(event)


async def connect(settings: Settings) -> Hypervisor:
    """The hypervisor of an installation. Machines that an earlier process started are found again."""
    logs = launcher = pids = None
    if settings.hypervisor == "embed":
        uri, logs = libvirt_embed.prepare(settings), libvirt_embed.logs(settings)
        launcher, pids = make_launcher(settings.cache / "libvirt"), libvirt_embed.pids(settings)
    else:
        uri = f"qemu:///{settings.hypervisor}"
    EventThread.start()
    machines = LibvirtMachines(uri, settings.prefix, logs, launcher, pids)
    # Before libvirt is opened: where it finds running machines and knows nothing of QEMU yet, it tries QEMU out at
    # once. It waits 20 s for each of four trials that nobody reaps, and tools wait for a daemon less than that.
    if is_subreaper() and threading.current_thread() is threading.main_thread():
        watch_orphans(asyncio.get_running_loop())
    await machines.open()
    return machines
