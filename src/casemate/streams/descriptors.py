"""Streams over descriptors: ``SocketStream`` over a socket, ``PipeStream`` over two pipes, files or terminals."""

from __future__ import annotations

import os
import socket
from collections import deque

from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.streams.stream import LEAST_ROOM, WINDOW, Handler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SPACE = memoryview(bytearray(64 * 1024))
"""What ``space`` returns: filled and sent without anything else happening in between, so one for the process."""
_IOV = 64
"""Pieces given to one writev(2). The kernel takes 1024 (IOV_MAX)."""


class _DescriptorStream:
    """What both kinds share. A subclass says how each direction is closed and watched."""

    __slots__ = (
        "_eof", "_finishing", "_in", "_loop", "_out", "_output", "_paused", "_pending", "_quiet", "_read_open",
        "_starved", "_write_open", "broken", "closed", "handler",
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
            except OSError:
                self._break()
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
            except OSError:
                self._break()
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
            except OSError:
                self._break()
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

    def _break(self) -> None:
        """Nobody reads what we send. It is thrown away from now on; what the peer still sends is taken."""
        self.broken = True
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


class SocketStream(_DescriptorStream):
    """A connected stream socket, which it owns.

    A peer that closes its socket while we still send has gone: the stream is aborted, even when bytes of it were not
    read yet (a program that calls a service closes its socket early only when it was killed). With ``drain`` those
    bytes are read first, to their end: for servers that answer and close.
    """

    __slots__ = ("_drain", "_mask", "_sock")

    def __init__(self, loop: Loop, sock: socket.socket, handler: Handler | None = None, drain: bool = False) -> None:
        fd = sock.fileno()
        super().__init__(loop, fd, fd, handler)
        self._sock = sock
        self._drain = drain
        self._mask = 0
        sock.setblocking(False)
        self._rewatch()

    def detach(self) -> socket.socket:
        """Give the socket up to the caller; only when nothing waits to be sent. The stream is no more."""
        self.closed = True
        self._read_open = self._write_open = False
        self._loop.forget(self._in)
        return self._sock

    def _rewatch(self) -> None:
        if self.closed:
            return
        mask = HANGUP
        if self._read_open and not self._paused:
            mask |= READ
        if self._output:
            mask |= WRITE
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self._in, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & WRITE and self._output:
            self._flush()
        if self.closed:
            return
        if mask & READ and self._read_open and not self._paused:
            self._read()
        elif mask & HANGUP:
            self._hung_up()

    def _hung_up(self) -> None:
        if self._drain and self._read_open:
            # The kernel would tell of the hang-up again and again until the bytes before it can be read.
            self._mask = 0
            self._loop.forget(self._in)
        elif self._drain and self._write_open:
            self._break()
        else:
            self._cut("closed by the other end")

    def _read_failed(self, error: OSError) -> None:
        self._cut(error.strerror or "read failed")

    def _close_input(self) -> None:
        self._read_open = False
        if self.closed:
            self._release()
        else:
            self._rewatch()

    def _close_output(self) -> None:
        if self._write_open:
            self._write_open = False
            if not self.closed:
                try:
                    self._sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # the peer has gone already; reading will tell
                self._rewatch()

    def _release(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.forget(self._in)
            self._sock.close()


class PipeStream(_DescriptorStream):
    """One descriptor to read from and one to write to (-1: none; that direction has ended from the beginning).

    It owns both, and nobody else reads the one. ``shared``: other processes have the same files open, so they are left
    as they are, and may block; the owner sees to it that writing does not. That the reader has gone is noticed when
    something is written.
    """

    __slots__ = ("_blocks", "_read_watched", "_write_watched")

    def __init__(
        self, loop: Loop, reading: int, writing: int, handler: Handler | None = None, shared: bool = False
    ) -> None:
        super().__init__(loop, reading, writing, handler)
        self._read_watched = False
        self._write_watched = False
        # A descriptor that we alone read does not block when it is ready. Writing may, so it is told not to; many
        # programs are given no input, which saves them a system call.
        self._blocks = not shared
        self._rewatch()

    def finish(self) -> None:
        """See above. A program that writes to the pipe learns at once that nobody reads it."""
        if self._read_open:
            self._close_input()
        super().finish()

    def _rewatch(self) -> None:
        wanted = self._read_open and not self._paused
        if wanted != self._read_watched:
            self._read_watched = wanted
            self._loop.watch(self._in, READ if wanted else 0, self._readable)
        wanted = self._write_open and bool(self._output)
        if wanted != self._write_watched:
            self._write_watched = wanted
            self._loop.watch(self._out, WRITE if wanted else 0, self._writable)

    def write(self, data: bytes | memoryview) -> None:
        """See ``Stream``."""
        if self._blocks:
            self._unblock()
        super().write(data)

    def writev(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See ``Stream``."""
        if self._blocks:
            self._unblock()
        super().writev(pieces)

    def _unblock(self) -> None:
        self._blocks = False
        if self._write_open:
            os.set_blocking(self._out, False)

    def _readable(self, _mask: int) -> None:
        self._read()

    def _writable(self, _mask: int) -> None:
        self._flush()

    def _read_failed(self, _error: OSError) -> None:
        self._end_input()  # a terminal that was hung up says EIO

    def _close_input(self) -> None:
        if self._read_open:
            self._read_open = False
            self._close(self._in, self._read_watched)

    def _close_output(self) -> None:
        if self._write_open:
            self._write_open = False
            self._close(self._out, self._write_watched)

    def _close(self, fd: int, watched: bool) -> None:
        if watched:
            self._loop.forget(fd)
        os.close(fd)
