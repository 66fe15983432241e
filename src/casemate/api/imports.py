"""Data for a volume, as it comes through a call's payload: spooled to a file, then put in place as a whole.

The payload of ``admin.vm.volume.Import`` is the image; that of ``ImportWithSize`` begins with a line that says how
many bytes follow, exactly. A call that is cut off changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from pathlib import Path

from casemate.api import dispatch
from casemate.api.context import Context
from casemate.model.domain import Domain
from casemate.wire import names
from casemate.wire.admin import Request, success
from casemate.wire.errors import NotHaltedError, ProtocolError, StorageError

METHODS = frozenset({"admin.vm.volume.Import", "admin.vm.volume.ImportWithSize"})
MAX_IMAGE = 1 << 44
_SIZE_LINE = 20


class Import:
    """One import: ``feed`` takes what comes, in order; ``finish`` puts it in place and gives the reply."""

    def __init__(self, context: Context, request: Request) -> None:
        self._context = context
        self._request = request
        domain: Domain = context.store.snapshot().domains.find(request.dest)
        self._name = domain.name
        self._volume = domain.volume(request.arg)
        if context.state(domain) != "Halted":
            raise NotHaltedError(f"{self._name} is running")
        self._line: bytearray | None = bytearray() if request.method.endswith("WithSize") else None
        self._size = self._volume.size
        self._got = 0
        self._lock = threading.Lock()
        directory = context.store.path.parent / "spool"
        directory.mkdir(mode=0o700, exist_ok=True)
        self._fd, path = tempfile.mkstemp(dir=directory, prefix="import-")
        self._path = Path(path)
        self._say("begin", size=str(self._size))

    def _say(self, word: str, **details: str) -> None:
        volume = {"volume": self._request.arg}
        self._context.events.publish(self._name, f"domain-volume-import-{word}", volume | details)

    def feed(self, data: bytes) -> None:
        """Take some more; call it in a thread. ProtocolError or StorageError once it cannot become right."""
        with self._lock:
            if self._fd >= 0:
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
            if data != bytes(len(data)):  # zeros stay a hole
                view = memoryview(data)
                at = self._got
                while view:
                    count = os.pwrite(self._fd, view, at)
                    view, at = view[count:], at + count
        except OSError as error:
            raise StorageError(f"The data cannot be kept: {error.strerror}") from error
        self._got += len(data)

    async def finish(self) -> bytes:
        """All has come: make it the volume's content; the reply."""
        done = False
        try:
            if self._line is not None or not self._got:
                raise ProtocolError("There is no data")
            if self._request.method.endswith("WithSize") and self._got != self._size:
                raise StorageError(f"{self._size} bytes were announced and {self._got} came")
            os.ftruncate(self._fd, self._got)
            await self._context.engine.import_volume(self._name, self._request.arg, self._path, self._got)
            done = True
            return success()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            return dispatch.reply_to(error, self._request)
        finally:
            self.close(done)

    def close(self, done: bool = False) -> None:
        """Forget the data; idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._path.unlink(missing_ok=True)
            self._say("end", success=str(done))
