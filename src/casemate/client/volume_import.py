"""Sends the content of a volume to the daemon, piece by piece: a sink of the reader of backups.

There are two ways. A tool that runs as the daemon's user writes the image into the daemon's spool itself, so that holes
cost nothing. Any other sends it as the payload of a call, holes as zeros, which the daemon makes holes again.
"""

from __future__ import annotations

import os
import socket
from typing import Protocol

from casemate.client.transport import Transport, end_request, read_reply
from casemate.wire.admin import build_request
from casemate.wire.errors import CasemateError, DaemonAccessError, StorageError


class VolumeImport(Protocol):
    """One import. ``begin`` with the size in bytes, ``write`` in ascending order, then ``finish`` or ``close``."""

    def begin(self, size: int) -> None:
        """The image has so many bytes with its holes."""

    def write(self, offset: int, data: memoryview) -> None:
        """Some of them."""

    def finish(self) -> None:
        """That was all: wait until it is in place. Raises what the daemon reports."""

    def close(self) -> None:
        """Give it up if it is not finished."""


_ZEROS = memoryview(bytes(1 << 20))
IMPORT_SECONDS = 900.0
"""How long the daemon may take to put a volume in place after its last byte."""


def begin_import(transport: Transport, qube: str, volume: str) -> VolumeImport:
    """The import of a volume of a halted qube, by the better way that is open to us."""
    if os.access(transport.settings.internal_socket, os.W_OK):
        return _SpoolImport(transport, qube, volume)
    return _PayloadImport(transport, qube, volume)


class _SpoolImport:
    """Writes into a file that the daemon names (``internal.vm.volume.ImportBegin``)."""

    def __init__(self, transport: Transport, qube: str, volume: str) -> None:
        self._transport = transport
        self._qube = qube
        self._volume = volume
        self._fd = -1

    def begin(self, size: int) -> None:
        """Ask for the file."""
        if not size:
            raise StorageError(f"{self._qube}: the {self._volume} volume of the backup is empty")
        answer = self._transport.internal("internal.vm.volume.ImportBegin", self._volume, self._qube, b"%d" % size)
        path = os.fsdecode(answer.partition(b" ")[2])
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            self._end(f"fail\n{error.strerror}")
            raise StorageError(f"{path}: {error.strerror}") from None

    def write(self, offset: int, data: memoryview) -> None:
        """Write there."""
        try:
            while data:
                count = os.pwrite(self._fd, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise StorageError(f"{self._qube}: the data cannot be kept: {error.strerror}") from None

    def finish(self) -> None:
        """Have it put in place."""
        os.close(self._fd)
        self._fd = -1
        self._end("ok")

    def close(self) -> None:
        """Have it dropped."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            try:
                self._end("fail\nthe restore was broken off")
            except CasemateError:
                pass  # that is what it says of a failed import

    def _end(self, word: str) -> None:
        self._transport.internal("internal.vm.volume.ImportEnd", self._volume, self._qube, word.encode())


class _PayloadImport:
    """Sends it as the payload of a call (``admin.vm.volume.ImportWithSize``)."""

    def __init__(self, transport: Transport, qube: str, volume: str) -> None:
        self._connection: socket.socket = transport.connect()
        self._request = build_request("admin.vm.volume.ImportWithSize", volume, qube)
        self._at = 0
        self._size = 0
        self._refused = False

    def begin(self, size: int) -> None:
        """See ``VolumeImport``."""
        self._size = size
        self._send(self._request + f"{size}\n".encode("ascii"))

    def write(self, offset: int, data: memoryview) -> None:
        """See ``VolumeImport``."""
        self._hole(offset)
        self._send(data)
        self._at = offset + len(data)

    def finish(self) -> None:
        """All has been written: wait until the volume is in place. Raises what the daemon reports."""
        try:
            self._hole(self._size)
            self._connection.settimeout(IMPORT_SECONDS)
            try:
                end_request(self._connection)
                read_reply(self._connection)
            except OSError as error:
                raise DaemonAccessError(f"The daemon's answer was cut off: {error.strerror}") from None
        finally:
            self.close()

    def close(self) -> None:
        """Give up what is not finished: the daemon drops it."""
        self._connection.close()

    def _hole(self, upto: int) -> None:
        while self._at < upto and not self._refused:
            piece = _ZEROS[: min(len(_ZEROS), upto - self._at)]
            self._send(piece)
            self._at += len(piece)

    def _send(self, data: bytes | memoryview) -> None:
        if self._refused:
            return
        try:
            self._connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self._refused = True  # the daemon has said why, and wants no more; ``finish`` reads it
        except OSError as error:
            raise DaemonAccessError(f"The daemon cannot be reached: {error.strerror}") from None
