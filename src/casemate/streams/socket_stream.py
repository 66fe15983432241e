"""A stream over a connected socket."""

from __future__ import annotations

import socket

from casemate.streams.descriptor_stream import DescriptorStream
from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.streams.stream import Handler


class SocketStream(DescriptorStream):
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
        self._loop.unwatch(self._in)
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
            # Until the handler has room for the bytes before it, the kernel would tell of the hang-up again and again.
            # It may have got room in this very round, after the kernel was asked: then they are read in the next.
            if self._paused:
                self._mask = 0
                self._loop.unwatch(self._in)
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
            self._loop.unwatch(self._in)
            self._sock.close()
