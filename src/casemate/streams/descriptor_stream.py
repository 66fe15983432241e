"""What streams over descriptors share: queue, window, half-close, abort."""

from __future__ import annotations

import errno
import os
from collections import deque

from casemate.streams.loop import Loop
from casemate.streams.stream import LEAST_ROOM, WINDOW, Handler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SPACE = memoryview(bytearray(64 * 1024))
"""What ``space`` returns: filled and sent without anything else happening in between, so one for the process."""
_IOV = 64
"""Pieces given to one writev(2). The kernel takes 1024 (IOV_MAX)."""


class DescriptorStream:
    """What both kinds share. A subclass says how each direction is closed and watched."""

    __slots__ = (
        "_eof", "_finishing", "_in", "_loop", "_out", "_output", "_paused", "_pending", "_quiet", "_read_open",
        "_starved", "_write_open", "broken", "closed", "failure", "handler",
    )  # fmt: skip

    def __init__(self, loop: Loop, reading: int, writing: int, handler: Handler | None) -> None:
        self.handler = Handler() if handler is None else handler
        self.closed = False
        self._loop = loop
        self._in = reading
        self._out = writing
        self._read_open = reading >= 0
        self._write_open = writing >= 0
        self._output: deque[bytes | memoryview] = deque()
        self._pending = 0
        self._eof = False  # we send no more
        self._finishing = False  # close when all is sent
        self.broken = False  # nobody reads what we send
        self.failure = 0  # errno of a write that failed for another reason, as on a full disk
        self._paused = False  # the handler had no room
        self._starved = False  # a writer waits for on_room
        self._quiet = False  # the owner has let go: the handler is not called again

    # -- what the owner calls

    @property
    def pending(self) -> int:
        """Bytes written that have not gone yet."""
        return self._pending

    def room(self) -> int:
        """See ``Stream``. Where nobody reads there is always room: it is thrown away."""
        if self.broken:
            return WINDOW
        if self.closed or self._eof:
            return 0
        room = WINDOW - self._pending
        if room < LEAST_ROOM:
            self._starved = True
            return 0
        return room

    def write(self, data: bytes | memoryview) -> None:
        """See ``Stream``."""
        if not self._write_open or self._eof:
            return
        if not self._output:
            try:
                count = os.write(self._out, data)
            except BlockingIOError:
                count = 0
            except OSError as error:
                self._break(error)
                return
            if count == len(data):
                return
            data = data[count:]
        self._keep(data)

    def writev(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See ``Stream``."""
        if len(pieces) == 1:
            self.write(pieces[0])
            return
        if not self._write_open or self._eof:
            return
        count = 0
        if not self._output:
            try:
                count = os.writev(self._out, pieces[:_IOV])
            except BlockingIOError:
                pass
            except OSError as error:
                self._break(error)
                return
        for piece in pieces:
            if count >= len(piece):
                count -= len(piece)
            else:
                self._keep(piece[count:] if count else piece)
                count = 0

    def space(self) -> memoryview:
        """See ``Stream``."""
        room = self.room()
        return _SPACE if room >= len(_SPACE) else _SPACE[:room]

    def commit(self, count: int) -> None:
        """See ``Stream``."""
        self.write(_SPACE[:count])

    def splice_in(self, fd: int, most: int) -> int:
        """Move at most ``most`` bytes from another descriptor to ours without reading them; how many were moved.

        0 when nothing could be moved now: the caller then reads and writes as usual, which tells why.
        """
        if self._output or not self._write_open or self._eof:
            return 0
        try:
            return os.splice(fd, self._out, most, flags=os.SPLICE_F_NONBLOCK)
        except OSError:
            return 0

    def splice_message(self, head: bytes, pipe: int, count: int) -> bool:
        """See ``Stream``. What the descriptor does not take now is read and kept, as ``write`` does."""
        if self._output or not self._write_open or self._eof:
            return False
        try:
            sent = os.write(self._out, head)
        except OSError:
            return False
        if sent < len(head):
            self._keep(head[sent:])
        while count and (moved := self.splice_in(pipe, count)):
            count -= moved
        while count:
            data = os.read(pipe, count)
            if not data:
                raise BrokenPipeError
            count -= len(data)
            self.write(data)
        return True

    def resume(self) -> None:
        """See ``Stream``."""
        if self._paused:
            self._paused = False
            self._rewatch()

    def eof(self) -> None:
        """See ``Stream``."""
        if not self._eof:
            self._eof = True
            if self._write_open and not self._output:
                self._end_output()

    def finish(self) -> None:
        """See ``Stream``."""
        self._finishing = True
        self.resume()
        self.eof()
        if not self._write_open and not self.closed:
            self._close_input()
            self._check_closed()

    def abort(self) -> None:
        """See ``Stream``."""
        self._quiet = True
        if not self.closed:
            self.closed = True
            self._output.clear()
            self._pending = 0
            self._close_input()
            self._close_output()

    # -- sending

    def _keep(self, data: bytes | memoryview) -> None:
        if data:
            self._output.append(bytes(data))
            self._pending += len(data)
            if len(self._output) == 1:
                self._rewatch()

    def _flush(self) -> None:
        output = self._output
        while output:
            batch = [output[i] for i in range(min(len(output), _IOV))]
            try:
                count = os.writev(self._out, batch)
            except BlockingIOError:
                break
            except OSError as error:
                self._break(error)
                return
            self._pending -= count
            for piece in batch:
                if count < len(piece):
                    break
                count -= len(piece)
                output.popleft()
            if count:
                output[0] = memoryview(output[0])[count:]
        if not output:
            if self._eof:
                self._end_output()
                return
            self._rewatch()
        self._tell_room()

    def _tell_room(self) -> None:
        if self._starved and self._pending < WINDOW // 2 and not self._quiet:
            self._starved = False
            self.handler.on_room()

    def _end_output(self) -> None:
        """All that was written has gone: let the peer see the end."""
        self._close_output()
        if self._finishing and self._read_open:
            self._close_input()
        self._check_closed()

    def _break(self, error: OSError | None = None) -> None:
        """Nobody reads what we send, or it cannot be written. It is thrown away from now on; what the peer still sends
        is taken."""
        self.broken = True
        if error is not None and error.errno not in (errno.EPIPE, errno.ECONNRESET):
            self.failure = error.errno or errno.EIO
        self._output.clear()
        self._pending = 0
        self._close_output()
        # Not from within the writer that has just run into this.
        self._loop.soon(self._tell_room)
        if self._finishing and self._read_open:
            self._close_input()
        self._check_closed()

    # -- receiving

    def _read(self) -> None:
        if not self._finishing and self.handler.take(self._in):
            return
        buffer = _SPACE if self._finishing else self.handler.buffer()
        if not buffer:
            self._paused = True
            self._rewatch()
            return
        try:
            count = os.readv(self._in, (buffer,))
        except BlockingIOError:
            return
        except OSError as error:
            self._read_failed(error)
            return
        if self._finishing:
            if not count:
                self._close_input()
                self._check_closed()
        elif count:
            self.handler.filled(count)
        else:
            self._end_input()

    def _end_input(self) -> None:
        self._close_input()
        self.handler.on_eof()
        self._check_closed()

    def _check_closed(self) -> None:
        """When both directions are over, say so; not from within the call of the owner that ended the last of them."""
        if not self._read_open and not self._write_open and not self.closed:
            self.closed = True
            self._release()
            self._loop.soon(self._say_closed)

    def _say_closed(self) -> None:
        if self._quiet:
            return
        if self.broken and not self._eof:
            self.handler.on_abort("the other end reads no more")
        else:
            self.handler.on_closed()

    def _cut(self, why: str) -> None:
        if not self.closed:
            self.abort()
            self.handler.on_abort(why)

    # -- for the kinds

    def _rewatch(self) -> None:
        """Watch what is wanted now."""
        raise NotImplementedError

    def _read_failed(self, error: OSError) -> None:
        raise NotImplementedError

    def _close_input(self) -> None:
        raise NotImplementedError

    def _close_output(self) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        """Both directions are over."""
