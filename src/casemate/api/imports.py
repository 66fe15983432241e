"""Data for a volume: spooled to a file, then put in place as a whole. A transfer that breaks off changes nothing.

There are two ways to send it. Either the payload of ``admin.vm.volume.Import`` is the image; that of ``ImportWithSize``
begins with a line that says how many bytes follow, exactly. Or a program of this host asks
``internal.vm.volume.ImportBegin`` for a path, writes the image there and says ``ImportEnd``, as upstream's service
program does.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from uuid import UUID

from casemate.api.events import Subscriptions
from casemate.api.parts import States, Volumes
from casemate.engine.power_table import Command, decide
from casemate.engine.spool import spool
from casemate.host.hypervisor import PowerState
from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire import names
from casemate.wire.admin import Request, success
from casemate.wire.errors import InUseError, ProtocolError, StorageError, printable

METHODS = frozenset({"admin.vm.volume.Import", "admin.vm.volume.ImportWithSize"})
MAX_IMAGE = 1 << 44
"""Limit of the Admin API (bytes): image that is put into a volume."""
IDLE_SECONDS = 600.0
"""Seconds without a write after which another import may replace one: its program has died or given up."""
_SIZE_LINE = 20
"""Most digits of the first line of ImportWithSize; 2**63 has 19."""


class Spool:
    """A file that takes the new content of a halted qube's volume, until it is put in place or dropped."""

    def __init__(
        self, volumes: Volumes, events: Subscriptions, state: Path, domain: Domain, volume: str, size: int
    ) -> None:
        """``size`` in bytes is announced; the file lies in the spool of ``state``."""
        self._volumes = volumes
        self._events = events
        self._name = domain.name
        self._volume = volume
        self.size = size
        self.fd, path = tempfile.mkstemp(dir=spool(state), prefix="import-")
        self.path = Path(path)
        self._events.publish(ev.VolumeImportBegin(self._name, self._volume, self.size))

    async def put(self, size: int) -> None:
        """Make the first ``size`` bytes the volume's content."""
        os.ftruncate(self.fd, size)
        await self._volumes.import_image(self._name, self._volume, self.path, size)

    def close(self, done: bool = False) -> None:
        """Remove the file; idempotent. ``done``: whether its content was put in place."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self.path.unlink(missing_ok=True)
            self._events.publish(ev.VolumeImportEnd(self._name, self._volume, done))


class Imports:
    """Makes spools, and keeps those of imports that programs of this host have begun.

    A volume has one such import at a time. One whose program died ends when the next one begins.
    """

    def __init__(self, store: Store, states: States, volumes: Volumes, events: Subscriptions) -> None:
        self._store = store
        self._states = states
        self._volumes = volumes
        self._events = events
        self._spools: dict[tuple[UUID, str], Spool] = {}

    def domain(self, name: str) -> Domain:
        """The qube that an import is for; NotFoundError."""
        return self._store.snapshot().domains.find(name)

    def spool(self, domain: Domain, volume: str, size: int | None = None) -> Spool:
        """A file for new content of a halted qube's volume. ``size`` None: as large as the volume is now."""
        found = domain.volume(volume)
        machine = self._states.all().get(domain.name)
        decide(Command.REPLACE, domain.name, PowerState.HALTED if machine is None else PowerState(machine.state))
        state = self._store.path.parent
        return Spool(self._volumes, self._events, state, domain, volume, found.size if size is None else size)

    def begin(self, domain: Domain, volume: str, size: int | None) -> Spool:
        """A file to write to, as long as it shall become; InUseError while another import writes."""
        self._drop_orphans()
        key = (domain.uuid, volume)
        before = self._spools.get(key)
        if before is not None:
            if time.time() - os.fstat(before.fd).st_mtime < IDLE_SECONDS:
                raise InUseError(f"{domain.name}: data for {volume} is coming in already")
            self.take(domain, volume).close()
        fresh = self.spool(domain, volume, size)
        try:
            os.ftruncate(fresh.fd, fresh.size)
        except OSError as error:
            fresh.close()
            raise StorageError(f"The data cannot be kept: {error.strerror}") from error
        self._spools[key] = fresh
        return fresh

    def _drop_orphans(self) -> None:
        """Drop what was begun for qubes that were removed meanwhile. A new qube of that name is not concerned."""
        there = {domain.uuid for domain in self._store.snapshot().domains.ordered()}
        for key in [key for key in self._spools if key[0] not in there]:
            self._spools.pop(key).close()

    def take(self, domain: Domain, volume: str) -> Spool:
        """Hand the import that was begun over to the caller, who closes it; ProtocolError when there is none."""
        begun = self._spools.pop((domain.uuid, volume), None)
        if begun is None:
            raise ProtocolError(f"{domain.name}: no import into {printable(volume, 80)!r} was begun")
        return begun


class Import:
    """One import by a call's payload: ``feed`` takes what comes, in order; ``finish`` puts it in place and replies."""

    def __init__(self, imports: Imports, request: Request) -> None:
        self.request = request
        domain = imports.domain(request.dest)
        self._line: bytearray | None = bytearray() if request.method.endswith("WithSize") else None
        self._spool = imports.spool(domain, request.arg)
        self._size = self._spool.size
        self._got = 0
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        """Take some more; call it in a thread. Raises ProtocolError or StorageError as soon as the data cannot be
        right."""
        with self._lock:
            if self._spool.fd >= 0:
                self._feed(data)

    def _feed(self, data: bytes) -> None:
        if self._line is not None:
            head, newline, rest = data.partition(b"\n")
            self._line += head
            if len(self._line) > _SIZE_LINE:
                raise ProtocolError("The first line must be the size of the image")
            if not newline:
                return
            self._size, self._line, data = names.number(bytes(self._line), "size", 1, MAX_IMAGE), None, rest
        if self._got + len(data) > self._size:
            raise StorageError(f"There is more data than {self._size} bytes")
        try:
            if data != bytes(len(data)):  # a block of zeros stays a hole of the sparse file
                view = memoryview(data)
                at = self._got
                while view:
                    count = os.pwrite(self._spool.fd, view, at)
                    view, at = view[count:], at + count
        except OSError as error:
            raise StorageError(f"The data cannot be kept: {error.strerror}") from error
        self._got += len(data)

    async def finish(self) -> bytes:
        """All data has come: make it the volume's content. Returns the reply, or raises what is wrong with the data."""
        done = False
        try:
            if self._line is not None or not self._got:
                raise ProtocolError("There is no data")
            if self.request.method.endswith("WithSize") and self._got != self._size:
                raise StorageError(f"{self._size} bytes were announced and {self._got} came")
            await self._spool.put(self._got)
            done = True
            return success()
        finally:
            self.close(done)

    def close(self, done: bool = False) -> None:
        """Remove the data; idempotent."""
        with self._lock:
            self._spool.close(done)
