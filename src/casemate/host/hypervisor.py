"""The contract of a hypervisor: machines by UUID, their states and events, devices plugged into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from uuid import UUID


class PowerState(StrEnum):
    """What a qube is doing, in the words of the Admin API."""

    HALTED = "Halted"
    TRANSIENT = "Transient"
    RUNNING = "Running"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    HALTING = "Halting"
    DYING = "Dying"
    CRASHED = "Crashed"
    NA = "NA"


class EventKind(StrEnum):
    """What happened to a machine."""

    STARTED = "started"
    STOPPED = "stopped"
    CRASHED = "crashed"
    PAUSED = "paused"
    RESUMED = "resumed"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """A machine as the hypervisor sees it. ``name`` is the qube's name; ``xid`` is -1 unless it runs.

    ``start_time`` (seconds since the epoch, as text) is not the hypervisor's: the engine adds it in `States`.
    """

    name: str
    uuid: UUID
    state: PowerState
    xid: int = -1
    memory_kib: int = 0
    cpu_time_ns: int = 0
    start_time: str | None = None


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """Something that happened to a machine of ours."""

    name: str
    uuid: UUID
    kind: EventKind


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk: a file in a format that is always said.

    ``backing`` is what the file is a layer over, nearest first, as (file, format): said too, so that nobody follows
    what the file itself claims. ``scratch``: thrown away at the end, so nobody waits for it to be on the platter.
    ``own_layers``: what lies below is this machine's alone; else other machines use it too.
    """

    target: str
    serial: str
    path: Path
    format: str
    readonly: bool = False
    backing: tuple[tuple[Path, str], ...] = ()
    scratch: bool = False
    own_layers: bool = False


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface of a machine: the guest sees ``mac``; its other end is the tap of that name in the wire room.

    ``fixed``: there from start to end, so that it needs no port from which it could be unplugged.
    """

    tap: str
    mac: str
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """That a machine's memory is a file of its own (see host/guest_memory.py).

    ``image``: the directory of a saved image that the machine goes on from; None for a machine that boots and from
    which an image can be saved. ``copied``: the machine has a copy of the image's memory and shares no page of it.
    """

    image: Path | None = None
    copied: bool = False


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine to define. ``uid`` and ``gid`` are who runs its QEMU; None where we are not root ourselves."""

    name: str
    uuid: UUID
    title: str
    memory_mib: int
    vcpus: int
    acceleration: str
    kernel: Path
    initrd: Path
    cmdline: str
    disks: tuple[Disk, ...]
    channel: Path
    console: Path
    uid: int | None = None
    gid: int | None = None
    usb: bool = False
    """Whether the machine has a USB controller, with free ports."""
    nics: tuple[Nic, ...] = ()
    """Network interfaces that are there from the start. Their taps must be there before, with their rules loaded."""
    memory: GuestMemory | None = None
    """None: memory of QEMU's own, of a machine that boots."""


@dataclass(frozen=True, slots=True)
class HostDisk:
    """A block device of the host as a disk of a machine. ``target`` is the disk's name there, such as ``vdd``.

    ``cdrom``: asked for as a CD-ROM; it is a disk that cannot be written. ``bus`` is ``virtio`` or ``usb``; a machine
    has a USB bus only if its MachineSpec says so.
    """

    node: Path
    target: str
    readonly: bool = False
    cdrom: bool = False
    bus: str = "virtio"


class Hypervisor(Protocol):
    """Machines of one installation. Every call raises HypervisorError (or a narrower error of ours) on failure."""

    async def define(self, spec: MachineSpec) -> None:
        """Keep a definition, so that the UUID is taken; replaces an earlier one. Nothing starts."""

    async def undefine(self, uuid: UUID) -> None:
        """Remove a definition. Absent is fine."""

    async def start_paused(self, spec: MachineSpec) -> None:
        """Define anew and create the machine; it does not run yet, its sockets exist. With an image as its memory it is
        where the image was saved."""

    async def save_image(self, uuid: UUID, directory: Path) -> None:
        """Stop a machine that was started with ``GuestMemory()``, and write its memory and the state of its devices
        into an empty directory. Its disks are whole then, and it must not run again."""

    async def fork_image(self, uuid: UUID, directory: Path) -> None:
        """Stop a running machine whose memory is a file, and keep a copy of its memory for machines that go on from
        ``directory``, into which the state of its devices is written. It stands still until ``resume``; its disks are
        whole then. The copy is lost with this process, or by ``release_image``."""

    async def keep_fork(self, directory: Path) -> None:
        """Write what ``fork_image`` has in memory into its directory too, so that later processes find it there."""

    async def release_image(self, directory: Path) -> None:
        """Hold nothing of an image in memory any more; machines that came from it run on."""

    async def resume(self, uuid: UUID) -> None:
        """Let a paused machine run; one that runs goes on running. NotStartedError where it is off."""

    async def pause(self, uuid: UUID) -> None:
        """Stop a machine's processors."""

    async def destroy(self, uuid: UUID) -> None:
        """End a machine at once; returns when it is gone. Absent or off is fine."""

    async def info(self, uuid: UUID) -> MachineInfo | None:
        """One machine; None when the hypervisor does not know it."""

    async def list(self) -> list[MachineInfo]:
        """All machines of ours, in one call."""

    async def attach_disk(self, uuid: UUID, disk: HostDisk) -> None:
        """Give a machine that was started a block device of the host, until it ends or detach_disk()."""

    async def detach_disk(self, uuid: UUID, target: str) -> None:
        """Take it back; DeviceBusyError when the guest does not let go of it. Absent is fine."""

    async def host_disks(self) -> Mapping[UUID, Sequence[HostDisk]]:
        """The block devices of the host that machines of ours have now, as the hypervisor knows it."""

    async def resize_disk(self, uuid: UUID, target: str, size: int) -> None:
        """Make a disk of a running machine, and its file, larger; ``size`` in bytes. The guest is told by its disk."""

    async def nics(self) -> Mapping[UUID, Sequence[Nic]]:
        """The network interfaces that machines of ours have now."""

    async def attach_nic(self, uuid: UUID, nic: Nic) -> None:
        """Give a running machine a network interface, until it ends or detach_nic(). One that is there is fine."""

    async def detach_nic(self, uuid: UUID, tap: str) -> None:
        """Take it back; DeviceBusyError when the guest does not let go of it. Absent is fine."""

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> None:
        """Hear of every event of our machines, in the event loop's thread."""

    async def close(self) -> None:
        """Let go; machines run on."""
