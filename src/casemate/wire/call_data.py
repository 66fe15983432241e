"""The data phase of a qrexec call: both ends of stdin, stdout, stderr and the exit code. Sans-I/O."""

from __future__ import annotations

import struct

from casemate.wire.errors import ProtocolError
from casemate.wire.qrexec import (
    DATA_EXIT_CODE,
    DATA_STDERR,
    DATA_STDIN,
    DATA_STDOUT,
    EXIT_VANISHED,
    HEADER,
    MAX_CHUNK,
)

_I32 = struct.Struct("<i")

VISIBLE = bytes(b if 0x20 <= b <= 0x7E or b in b"\t\n\r\b\a" else ord("_") for b in range(256))
"""Translation of output for a terminal: what could be part of an escape sequence becomes ``_``."""

Event = tuple[int, memoryview]
"""(type, bytes). Data of length 0 is the end of that stream; an exit code has no bytes, it is in ``exit_code``."""

_EMPTY = memoryview(b"")


class _DataReader:
    """Reads data messages as they come: bytes go on at once, as views of what was fed, nothing is kept but headers."""

    __slots__ = ("_ended", "_head", "_kind", "_left", "_streams", "exit_code")

    def __init__(self, streams: frozenset[int]) -> None:
        self._streams = streams
        self._ended: set[int] = set()
        self._head = bytearray()
        self._kind = 0
        self._left = 0
        self.exit_code: int | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes of the peer; ProtocolError on a violation. Use the views before ``data`` changes."""
        view = memoryview(data)
        end = len(view)
        at = 0
        events: list[Event] = []
        while at < end:
            if self.exit_code is not None:
                raise ProtocolError("qrexec: bytes after the exit code")
            if self._left:
                upto = at + self._left if self._left < end - at else end
                self._left -= upto - at
                if self._kind == DATA_EXIT_CODE:
                    self._exit(view[at:upto], events)
                else:
                    events.append((self._kind, view[at:upto]))
                at = upto
                continue
            if self._head or end - at < 8:
                take = min(8 - len(self._head), end - at)
                self._head += view[at : at + take]
                at += take
                if len(self._head) < 8:
                    break
                kind, length = HEADER.unpack(self._head)
                self._head.clear()
            else:
                kind, length = HEADER.unpack_from(view, at)
                at += 8
            self._begin(kind, length, events)
        return events

    @property
    def expected(self) -> int:
        """Bytes of data that the message which has begun still lacks; 0 between messages and in an exit code."""
        return 0 if self._kind == DATA_EXIT_CODE else self._left

    @property
    def between(self) -> bool:
        """True when the next byte is the first of a message."""
        return not self._left and not self._head

    def passed(self, count: int) -> None:
        """``count`` of the ``expected`` bytes went by another way."""
        self._left -= count

    def _begin(self, kind: int, length: int, events: list[Event]) -> None:
        if kind == DATA_EXIT_CODE and DATA_STDOUT in self._streams:
            if length != _I32.size:
                raise ProtocolError(f"qrexec: exit code of {length} bytes")
        elif kind not in self._streams or length > MAX_CHUNK:
            raise ProtocolError(f"qrexec: message of type {kind:#x} and length {length} is not allowed here")
        elif kind in self._ended:
            raise ProtocolError(f"qrexec: message of type {kind:#x} after its end")
        elif not length:
            self._ended.add(kind)
            events.append((kind, _EMPTY))
        self._kind = kind
        self._left = length

    def _exit(self, data: memoryview, events: list[Event]) -> None:
        self._head += data
        if len(self._head) < _I32.size:
            return
        (code,) = _I32.unpack(self._head)
        self._head.clear()
        self.exit_code = code if 0 <= code <= 255 else EXIT_VANISHED
        for kind in (DATA_STDOUT, DATA_STDERR):
            if kind not in self._ended:
                self._ended.add(kind)
                events.append((kind, _EMPTY))
        events.append((DATA_EXIT_CODE, _EMPTY))


def frames(kind: int, data: bytes | memoryview) -> list[bytes | memoryview]:
    """``data`` as messages of at most MAX_CHUNK bytes: headers and views, for ``sendmsg``; no bytes are copied."""
    size = len(data)
    if size <= MAX_CHUNK:
        return [HEADER.pack(kind, size), data] if size else []
    view = memoryview(data)
    out: list[bytes | memoryview] = []
    for at in range(0, size, MAX_CHUNK):
        piece = view[at : at + MAX_CHUNK]
        out += (HEADER.pack(kind, len(piece)), piece)
    return out


class CallerSide(_DataReader):
    """The caller's end: sends stdin, gets stdout, stderr and at last the exit code."""

    __slots__ = ("stdin_open",)

    def __init__(self) -> None:
        super().__init__(frozenset((DATA_STDOUT, DATA_STDERR)))
        self.stdin_open = True

    def stdin(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """What to send for these bytes of stdin; nothing when stdin has ended or the service has exited."""
        return frames(DATA_STDIN, data) if self.stdin_open and self.exit_code is None else []

    def stdin_eof(self) -> list[bytes | memoryview]:
        """What to send at the end of stdin; nothing the second time."""
        if not self.stdin_open or self.exit_code is not None:
            return []
        self.stdin_open = False
        return [HEADER.pack(DATA_STDIN, 0)]

    def status(self) -> int:
        """Exit status of the call once the stream has ended: the service's, or 255 when the peer vanished."""
        return EXIT_VANISHED if self.exit_code is None else self.exit_code


class ServiceSide(_DataReader):
    """The executing end: gets stdin, sends stdout, stderr and at last the exit code."""

    __slots__ = ("_open", "finished")

    def __init__(self) -> None:
        super().__init__(frozenset((DATA_STDIN,)))
        self._open = {DATA_STDOUT, DATA_STDERR}
        self.finished = False
        """True once the exit code was sent."""

    def output(self, kind: int, data: bytes | memoryview) -> list[bytes | memoryview]:
        """What to send for bytes of stdout or stderr (``kind`` is DATA_STDOUT or DATA_STDERR)."""
        return frames(kind, data) if kind in self._open else []

    def eof(self, kind: int) -> list[bytes | memoryview]:
        """What to send at the end of stdout or stderr; nothing the second time."""
        if kind not in self._open:
            return []
        self._open.discard(kind)
        return [HEADER.pack(kind, 0)]

    def exit(self, code: int) -> list[bytes | memoryview]:
        """What to send last: the ends that were not said yet, then the exit code."""
        if self.finished:
            return []
        out = self.eof(DATA_STDOUT) + self.eof(DATA_STDERR)
        self.finished = True
        out.append(HEADER.pack(DATA_EXIT_CODE, _I32.size) + _I32.pack(code))
        return out


def exit_code(end: bytes) -> int | None:
    """The exit code in the last bytes of what a service sends; None when they are not that message."""
    if len(end) < HEADER.size + _I32.size or HEADER.unpack_from(end, len(end) - 12) != (DATA_EXIT_CODE, _I32.size):
        return None
    (code,) = _I32.unpack_from(end, len(end) - 4)
    return int(code) if 0 <= code <= 255 else EXIT_VANISHED
