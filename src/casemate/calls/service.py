"""Runs the program of a qrexec call: its three pipes on one side, the call's data phase on the other."""

from __future__ import annotations

import os
from collections import deque

from casemate.streams.channel import IN_PLACE_AFTER, IN_PLACE_BEFORE, ByteStream, StreamHandler
from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.wire.errors import ProtocolError
from casemate.wire.qrexec import DATA_STDERR, DATA_STDIN, DATA_STDOUT, HEADER, ServiceSide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE = HEADER.size
_BEFORE = IN_PLACE_BEFORE + MESSAGE
_BUFFER = bytearray(65536)
"""Where output of programs passes through, framed in place. A frame fits into two transfers of a port (32 KiB each)."""
_OUTPUT = memoryview(_BUFFER)
_PIPE_READ = len(_BUFFER) - _BEFORE - IN_PLACE_AFTER


class ServiceCall(StreamHandler):
    """One call being served. Owns the pipes; ``exited`` must be called with the program's status when it is reaped.

    Ends (``on_done``) when the program was reaped and its output has been sent, or when the peer is gone. The output
    stays open for grandchildren, as upstream does.
    """

    def __init__(
        self,
        loop: Loop,
        stream: ByteStream,
        stdin: int,
        stdout: int,
        stderr: int | None,
        on_done: Callable[[ServiceCall], None],
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._side = ServiceSide()
        self._stdin = stdin
        self._outputs = {stdout: DATA_STDOUT}
        if stderr is not None:
            self._outputs[stderr] = DATA_STDERR
        self._on_done = on_done
        self._waiting: deque[memoryview] = deque()
        self._stdin_eof = False
        self._status: int | None = None
        self._done = False
        self._masks: dict[int, int] = {}
        for fd in (stdin, *self._outputs):
            os.set_blocking(fd, False)
        stream.handler = self
        if stderr is None:
            self._send(self._side.eof(DATA_STDERR))
        self._rewatch()

    # -- towards the program

    def on_data(self, data: bytes | memoryview) -> None:
        try:
            events = self._side.feed(data)
        except ProtocolError:
            self._fail()
            return
        payload = added = 0
        for kind, view in events:
            if kind != DATA_STDIN:
                continue
            if view:
                payload += len(view)
                if self._stdin < 0:
                    self._stream.consumed(len(view))
                else:
                    self._waiting.append(view)
                    added += 1
            else:
                self._stdin_eof = True
        self._stream.consumed(len(data) - payload)
        self._drain()
        # What is left came as views of the channel's buffer, good no longer than this call.
        for at in range(max(0, len(self._waiting) - added), len(self._waiting)):
            self._waiting[at] = memoryview(bytes(self._waiting[at]))

    def on_eof(self) -> None:
        self._stdin_eof = True
        self._drain()

    def _drain(self) -> None:
        waiting = self._waiting
        while waiting and self._stdin >= 0:
            try:
                count = os.writev(self._stdin, [waiting[i] for i in range(min(len(waiting), 32))])
            except BlockingIOError:
                break
            except OSError:
                self._close_stdin()
                break
            self._stream.consumed(count)
            while count:
                first = waiting[0]
                if count < len(first):
                    waiting[0] = first[count:]
                    break
                count -= len(first)
                waiting.popleft()
        if self._stdin_eof and not waiting:
            self._close_stdin()
        self._rewatch()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._unwatch(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
        left = sum(len(piece) for piece in self._waiting)
        self._waiting.clear()
        if left:
            self._stream.consumed(left)

    # -- from the program

    def on_room(self) -> None:
        self._rewatch()
        self._finish()

    def _read(self, fd: int) -> None:
        room = min(self._stream.room() - MESSAGE, _PIPE_READ)
        if room <= 0:
            return
        kind = self._outputs[fd]
        try:
            count = os.readv(fd, (_OUTPUT[_BEFORE : _BEFORE + room],))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count:
            HEADER.pack_into(_OUTPUT, IN_PLACE_BEFORE, kind, count)
            self._stream.write_in_place(_OUTPUT[: _BEFORE + count + IN_PLACE_AFTER])
        elif self._stream.room() >= MESSAGE:
            del self._outputs[fd]
            self._unwatch(fd)
            os.close(fd)
            self._send(self._side.eof(kind))

    def exited(self, status: int) -> None:
        """The program was reaped; ``status`` is 0..255, 128+N for signal N."""
        self._status = status
        self._close_stdin()
        self._finish()

    def _finish(self) -> None:
        # The last message needs room like any other: three messages of 8 bytes and 4 of the status.
        if self._done or self._status is None or self._outputs or self._side.finished:
            return
        if self._stream.room() < 3 * MESSAGE + 4:
            return
        self._send(self._side.exit(self._status))
        self._stream.eof()
        self._end()

    def _send(self, pieces: list[bytes | memoryview]) -> None:
        if pieces:
            self._stream.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    # -- both

    def _rewatch(self) -> None:
        if self._done:
            return
        if self._stdin >= 0:
            self._watch(self._stdin, WRITE if self._waiting else HANGUP)
        if self._outputs:
            mask = READ if self._stream.room() > MESSAGE else 0
            for fd in self._outputs:
                self._watch(fd, mask)

    def _watch(self, fd: int, mask: int) -> None:
        if self._masks.get(fd, 0) != mask:
            self._masks[fd] = mask
            self._loop.watch(fd, mask, lambda ready, fd=fd: self._ready(fd, ready))  # type: ignore[misc]

    def _unwatch(self, fd: int) -> None:
        if self._masks.pop(fd, 0):
            self._loop.forget(fd)

    def _ready(self, fd: int, mask: int) -> None:
        if fd == self._stdin:
            if self._waiting:
                self._drain()
            elif mask & HANGUP:
                self._close_stdin()  # nobody reads it any more
        elif fd in self._outputs:
            self._read(fd)
            self._finish()
            self._rewatch()

    def on_abort(self) -> None:
        """The caller is gone: the program gets EOF on its input and SIGPIPE on its output."""
        self._end()

    def _fail(self) -> None:
        if not self._done:
            self._stream.abort()
            self._end()

    def _end(self) -> None:
        if self._done:
            return
        self._done = True
        self._waiting.clear()
        for fd in [self._stdin, *self._outputs]:
            if fd >= 0:
                self._unwatch(fd)
                os.close(fd)
        self._stdin = -1
        self._outputs.clear()
        self._on_done(self)


def refuse(stream: ByteStream, status: int, why: str = "") -> None:
    """End a call that cannot be served: ``why`` on its stderr, then the status (127: no such service)."""
    side = ServiceSide()
    pieces = side.output(DATA_STDERR, why.encode("ascii", "replace")[:4096]) + side.exit(status)
    stream.write(b"".join(pieces))
    stream.eof()
