"""A client of NBD that reads: which parts of an image have data, which of its layers have them, and the data.

Source: the NBD project's doc/proto.md (fixed newstyle negotiation, structured replies, block status) and QEMU's
docs/interop/nbd.rst (``qemu:allocation-depth``). The server is QEMU, on an image that a qube wrote: what it says is
checked for its form.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casemate.backup.errors import BackupError
from casemate.streams.exactly import exactly
from casemate.streams.long_address import shortened

_STATUS_SPAN = 1 << 30
"""Bytes that one question for block status covers. An answer has at most about 8 MiB, in QEMU's server."""
_MOST_REPLY = 64 << 20
_SECONDS = 600.0
"""How long the server may be silent: the disk that it reads may be very slow."""
_IHAVEOPT, _OPTION_REPLY = b"IHAVEOPT", 0x0003E889045565A9
_GO, _STRUCTURED, _SET_CONTEXT = 7, 8, 10
_ACK, _INFO, _CONTEXT = 1, 3, 4
_REQUEST, _CHUNK = 0x25609513, 0x668E33EF
_READ, _DISCONNECT, _BLOCK_STATUS = 0, 2, 7
_DONE, _NONE, _DATA, _HOLE, _STATUS = 1, 0, 1, 2, 5
_ALLOCATION, _DEPTH = "base:allocation", "qemu:allocation-depth"
_ZERO = 2
"""Flag of ``base:allocation``: the extent reads as zeros."""


class NbdError(BackupError):
    """The image cannot be read, or what serves it does not speak the protocol."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of the image. ``depth`` is the layer that has it, 1 for the uppermost, 0 for none."""

    offset: int
    length: int
    zero: bool
    depth: int


class NbdClient:
    """One connection to one export. ``size`` is in bytes. Close it in any case."""

    def __init__(self, address: Path, export: str) -> None:
        """Connect; NbdError. ``address`` may be longer than an address of a socket can be."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_SECONDS)
        self._handle = 0
        self.size = 0
        self._contexts: dict[int, str] = {}
        try:
            with shortened(address) as short:
                self._socket.connect(short)
            self._negotiate(export.encode("ascii"))
        except (OSError, struct.error) as error:
            self._socket.close()
            raise NbdError(f"The volume is not served: {error}") from None
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """End the connection."""
        try:
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        except OSError:
            pass  # the server has gone
        self._socket.close()

    # -- negotiation

    def _negotiate(self, export: bytes) -> None:
        if self._exactly(16) != b"NBDMAGIC" + _IHAVEOPT:
            raise NbdError("What serves the volume does not speak NBD")
        self._exactly(2)
        self._socket.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        self._option(_STRUCTURED, b"")
        queries = [_ALLOCATION.encode("ascii"), _DEPTH.encode("ascii")]
        named = struct.pack(">I", len(export)) + export
        self._option(
            _SET_CONTEXT,
            named + struct.pack(">I", len(queries)) + b"".join(struct.pack(">I", len(one)) + one for one in queries),
        )
        if set(self._contexts.values()) != {_ALLOCATION, _DEPTH}:
            raise NbdError("The server does not tell which parts of the volume have data")
        self._option(_GO, named + struct.pack(">H", 0))
        if self.size <= 0:
            raise NbdError("The server does not tell the size of the volume")

    def _option(self, option: int, data: bytes) -> None:
        self._socket.sendall(_IHAVEOPT + struct.pack(">II", option, len(data)) + data)
        while True:
            magic, same, kind, length = struct.unpack(">QIII", self._exactly(20))
            if magic != _OPTION_REPLY or same != option or length > 65536:
                raise NbdError("The server answers an option with something else")
            body = self._exactly(length)
            if kind == _ACK:
                return
            if kind == _CONTEXT:
                self._contexts[struct.unpack_from(">I", body)[0]] = body[4:].decode("ascii", "replace")
            elif kind == _INFO and struct.unpack_from(">H", body)[0] == 0:
                self.size = struct.unpack_from(">Q", body, 2)[0]
            elif kind & 0x80000000:
                raise NbdError(f"The server refuses option {option}: {body.decode('utf-8', 'replace')[:200]}")

    # -- requests

    def read(self, offset: int, length: int) -> bytearray:
        """Bytes of the image; at most 32 MiB, because QEMU's server gives no more at once."""
        out = bytearray(length)
        for kind, body in self._ask(_READ, offset, length):
            at = struct.unpack_from(">Q", body)[0] - offset if kind in (_DATA, _HOLE) else 0
            if kind == _DATA:
                if not 0 <= at <= length - (len(body) - 8):
                    raise NbdError("The server sends other bytes than it was asked for")
                out[at : at + len(body) - 8] = memoryview(body)[8:]
        return out

    def extents(self) -> Iterator[Extent]:
        """The whole image in its order."""
        at = 0
        while at < self.size:
            found = self._status(at, min(_STATUS_SPAN, self.size - at))
            zero, depth = found.get(_ALLOCATION, []), found.get(_DEPTH, [])
            begin = at
            for length, flags, level in _both(zero, depth):
                if at + length > self.size:
                    length = self.size - at
                yield Extent(at, length, bool(flags & _ZERO), level)
                at += length
            if at == begin:
                raise NbdError("The server does not tell which parts of the volume have data")

    def _status(self, offset: int, length: int) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for kind, body in self._ask(_BLOCK_STATUS, offset, length):
            if kind == _STATUS and len(body) % 8 == 4:
                name = self._contexts.get(struct.unpack_from(">I", body)[0], "")
                found[name] = list(struct.iter_unpack(">II", memoryview(body)[4:]))
        return found

    def _ask(self, request: int, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        self._handle += 1
        try:
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, request, self._handle, offset, length))
            while True:
                magic, flags, kind, handle, size = struct.unpack(">IHHQI", self._exactly(20))
                if magic != _CHUNK or handle != self._handle or size > _MOST_REPLY:
                    raise NbdError("The server answers with something else than was asked for")
                body = self._exactly(size)
                if kind & 0x8000:
                    why = os.strerror(struct.unpack_from(">I", body)[0])
                    raise NbdError(f"The volume cannot be read at byte {offset}: {why}")
                if kind != _NONE:
                    yield kind, body
                if flags & _DONE:
                    return
        except (OSError, struct.error) as error:
            raise NbdError(f"The volume is not served any more: {error}") from None

    def _exactly(self, count: int) -> bytes:
        try:
            return exactly(self._socket, count)
        except EOFError:
            raise NbdError("The server of the volume has gone") from None


def _both(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Two lists of (length, value) as one of (length, value, value), as far as both go."""
    left, right = iter(one), iter(other)
    (a, x), (b, y) = next(left, (0, 0)), next(right, (0, 0))
    while a and b:
        step = min(a, b)
        yield step, x, y
        a, b = a - step, b - step
        if not a:
            a, x = next(left, (0, 0))
        if not b:
            b, y = next(right, (0, 0))
