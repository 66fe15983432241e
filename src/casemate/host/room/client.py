"""casemated's end of the wire room: starts the room's process, asks it, starts it again when it is killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from casemate.host.files import replace_file
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
from casemate.host.process import PACKAGE_PATH, Runner
from casemate.host.room import namespaces
from casemate.host.room.links import Tap, Traffic
from casemate.host.room.messages import read_message, write_message
from casemate.host.room.namespaces import NoRoomError, Room
from casemate.host.room.nft import Command
from casemate.settings import Settings
from casemate.wire.errors import CasemateError, HypervisorError

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
"""Longer than libvirt takes to probe QEMU for the first time on a busy emulated host."""
_AGAIN_SECONDS = 1.0
"""Pause between two attempts to start the process anew."""


class RoomProcess:
    """The process in the room. Owns the connection to it, and descriptors that keep the room alive meanwhile."""

    def __init__(self, settings: Settings, runner: Runner, owner: int | None) -> None:
        """``owner``: the user whom a new room belongs to, where we are root."""
        self._settings = settings
        self._runner = runner
        self._owner = owner
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.room: Room | None = None
        """The namespaces; None where this host has none for us."""
        self.why = ""
        """Why there are no wires; empty where there are."""
        self.pid = -1
        self.on_event: Callable[[MachineEvent], None] = lambda event: None
        """Called for each event of a machine."""
        self.on_restart: list[Callable[[], Awaitable[None]]] = []
        """Called, in order, when the process was started anew after it had ended unasked."""

    @property
    def _record(self) -> Path:
        return self._settings.run / "room"

    async def open(self) -> None:
        """Start the process in the room of an earlier daemon, where that is still there, else in a new one."""
        if self.room is None:
            self.room = self._earlier()
        ours, theirs = socket.socketpair()
        with theirs:
            process = await self._spawn(theirs)
        self.pid = process.pid
        try:
            ours.setblocking(False)
            async with asyncio.timeout(_START_SECONDS):
                await self._take_room(ours)
                reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 24)
                answer = json.loads(await reader.readline() or b"{}")
        except (TimeoutError, OSError, ValueError) as error:
            raise HypervisorError(f"the process of the wire room did not start: {error!r}: see {self._log}") from None
        if "why" not in answer:
            raise HypervisorError(f"the process of the wire room ended at its start: see {self._log}")
        self.why = answer["why"]
        if "error" in answer:
            raise HypervisorError(answer["error"])
        self._task = asyncio.create_task(self._read(reader))

    def _earlier(self) -> Room | None:
        try:
            return namespaces.find(int(self._record.read_text()))
        except (OSError, ValueError):
            return None

    @property
    def _log(self) -> Path:
        return self._settings.run / "log" / "room.log"

    async def _spawn(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fds = (-1, -1) if self.room is None else (self.room.user, self.room.net)
        argv = [theirs.fileno(), *fds, -1 if self._owner is None else self._owner]
        environment = {name: value for name, value in os.environ.items() if name.startswith(("CASEMATE_", "XDG_"))}
        environment |= {**self._settings.environment(), "PYTHONPATH": PACKAGE_PATH}
        with open(self._log, "ab") as output:
            if output.tell() > 1 << 20:
                output.truncate(0)
            return await self._runner.spawn(
                [sys.executable, "-P", "-m", "casemate.host.room", *map(str, argv)],
                env=environment,
                pass_fds=[theirs.fileno(), *(fd for fd in fds if fd >= 0)],
                stderr=output.fileno(),
            )

    async def _take_room(self, ours: socket.socket) -> None:
        """The first byte comes with descriptors of the room that the process is in."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(ours, ready.set_result, None)
        try:
            await ready
        finally:
            loop.remove_reader(ours)
        _data, fds, _flags, _address = socket.recv_fds(ours, 1, 2)
        if self.room is not None:
            self.room.close()
        self.room = Room(*fds) if len(fds) == 2 else None
        if self.room is not None:
            replace_file(self._record, f"{self.room.inode}\n".encode(), mode=0o600)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, error, value = await read_message(reader)
                if number is None:
                    self.on_event(value)
                elif (future := self._waiting.pop(number, None)) is not None and not future.done():
                    future.set_exception(_error(*error)) if error else future.set_result(value)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self._fail()
        if not self._closing:
            log.warning("the process of the wire room has ended; it is started anew, qubes and their wires go on")
            self._task = asyncio.create_task(self._restart())

    def _fail(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(HypervisorError("the process of the wire room ended meanwhile: try again"))

    async def _restart(self) -> None:
        while True:
            try:
                await self.open()
                break
            except CasemateError as error:
                log.error("%s", error)
                await asyncio.sleep(_AGAIN_SECONDS)
        for action in self.on_restart:
            try:
                await action()
            except CasemateError as error:
                log.error("after a new start of the wire room: %s", error)

    async def ask(self, part: str, method: str, *arguments: Any) -> Any:
        """Have a method of a part of the room called; its errors are raised here."""
        if self._writer is None:
            raise HypervisorError("the process of the wire room is starting: try again")
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        write_message(self._writer, (number, part, method, arguments))
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """End the process; machines, wires and rules stay."""
        self._closing = True
        self._fail()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.room is not None:
            self.room.close()
            self.room = None


def _error(kind: type[CasemateError], text: str) -> CasemateError:
    error = kind.__new__(kind)
    CasemateError.__init__(error, text)  # constructors of some classes take something else than the message
    return error


class RoomWires:
    """Taps and rules of the room (``server.Wires``), from outside."""

    def __init__(self, process: RoomProcess) -> None:
        self._process = process

    @property
    def process(self) -> RoomProcess:
        """The process behind it."""
        return self._process

    @property
    def why(self) -> str:
        """Why qubes can have no wires here; empty where they can."""
        return self._process.why

    @property
    def room(self) -> Room | None:
        """The namespaces of the room."""
        return self._process.room

    async def apply(
        self, taps: Sequence[Tap], commands: Sequence[Command], up: Sequence[str], remove: Sequence[str]
    ) -> None:
        """Make taps, load rules, let frames pass on ``up``, remove taps; if it fails, nothing has changed."""
        if self.why:
            raise NoRoomError(f"qubes have no network on this host: {self.why}")
        await self._process.ask("wires", "apply", list(taps), list(commands), list(up), list(remove))

    async def names(self) -> dict[str, int]:
        """Interfaces that are there, with their indexes."""
        return {} if self.why else dict(await self._process.ask("wires", "names"))

    async def traffic(self) -> Mapping[str, Traffic]:
        """Counters of the interfaces."""
        return {} if self.why else dict(await self._process.ask("wires", "traffic"))

    async def counters(self) -> Mapping[str, tuple[int, int]]:
        """Packets and bytes by counter of the rules."""
        return {} if self.why else dict(await self._process.ask("wires", "counters"))


class RoomMachines(Hypervisor):
    """Machines of libvirt's embedded driver, which runs in the room's process."""

    def __init__(self, process: RoomProcess) -> None:
        self._process = process
        self._callbacks: list[Callable[[MachineEvent], None]] = []
        self._known: dict[UUID, str] = {}
        process.on_event = self._tell
        process.on_restart.append(self._catch_up)

    async def _catch_up(self) -> None:
        """Tell of machines that ended while nobody listened."""
        running = {info.uuid for info in await self.list() if info.state is not PowerState.HALTED}
        for uuid, name in list(self._known.items()):
            if uuid not in running:
                self._tell(MachineEvent(name, uuid, EventKind.STOPPED))

    def _tell(self, event: MachineEvent) -> None:
        if event.kind in (EventKind.STOPPED, EventKind.CRASHED):
            self._known.pop(event.uuid, None)
        else:
            self._known[event.uuid] = event.name
        for callback in self._callbacks:
            callback(event)

    async def define(self, spec: MachineSpec) -> None:
        await self._process.ask("machines", "define", spec)

    async def undefine(self, uuid: UUID) -> None:
        await self._process.ask("machines", "undefine", uuid)

    async def start_paused(self, spec: MachineSpec) -> None:
        self._known[spec.uuid] = spec.name
        await self._process.ask("machines", "start_paused", spec)

    async def save_image(self, uuid: UUID, directory: Path) -> None:
        await self._process.ask("machines", "save_image", uuid, directory)

    async def fork_image(self, uuid: UUID, directory: Path) -> None:
        await self._process.ask("machines", "fork_image", uuid, directory)

    async def keep_fork(self, directory: Path) -> None:
        await self._process.ask("machines", "keep_fork", directory)

    async def release_image(self, directory: Path) -> None:
        await self._process.ask("machines", "release_image", directory)

    async def resume(self, uuid: UUID) -> None:
        await self._process.ask("machines", "resume", uuid)

    async def pause(self, uuid: UUID) -> None:
        await self._process.ask("machines", "pause", uuid)

    async def destroy(self, uuid: UUID) -> None:
        await self._process.ask("machines", "destroy", uuid)

    async def info(self, uuid: UUID) -> MachineInfo | None:
        found: MachineInfo | None = await self._process.ask("machines", "info", uuid)
        return found

    async def list(self) -> list[MachineInfo]:
        found: list[MachineInfo] = await self._process.ask("machines", "list")
        self._known.update({info.uuid: info.name for info in found if info.state is not PowerState.HALTED})
        return found

    async def attach_disk(self, uuid: UUID, disk: HostDisk) -> None:
        await self._process.ask("machines", "attach_disk", uuid, disk)

    async def detach_disk(self, uuid: UUID, target: str) -> None:
        await self._process.ask("machines", "detach_disk", uuid, target)

    async def resize_disk(self, uuid: UUID, target: str, size: int) -> None:
        await self._process.ask("machines", "resize_disk", uuid, target, size)

    async def host_disks(self) -> Mapping[UUID, Sequence[HostDisk]]:
        found: Mapping[UUID, Sequence[HostDisk]] = await self._process.ask("machines", "host_disks")
        return found

    async def nics(self) -> Mapping[UUID, Sequence[Nic]]:
        found: Mapping[UUID, Sequence[Nic]] = await self._process.ask("machines", "nics")
        return found

    async def attach_nic(self, uuid: UUID, nic: Nic) -> None:
        await self._process.ask("machines", "attach_nic", uuid, nic)

    async def detach_nic(self, uuid: UUID, tap: str) -> None:
        await self._process.ask("machines", "detach_nic", uuid, tap)

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> None:
        self._callbacks.append(callback)

    async def close(self) -> None:
        """End the process; machines run on."""
        self._callbacks.clear()
        await self._process.close()


async def open_room(settings: Settings, runner: Runner, owner: int | None) -> tuple[RoomMachines, RoomWires]:
    """Start the room's process; its machines and its wires."""
    process = RoomProcess(settings, runner, owner)
    machines = RoomMachines(process)
    try:
        await process.open()
    except BaseException:
        await process.close()
        raise
    return machines, RoomWires(process)
