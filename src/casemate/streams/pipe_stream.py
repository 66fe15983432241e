"""A stream over two pipes, files or terminals, one for each direction."""

from __future__ import annotations

import os

from casemate.streams.descriptor_stream import DescriptorStream
from casemate.streams.loop import READ, WRITE, Loop
from casemate.streams.stream import Handler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class PipeStream(DescriptorStream):
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
            self._loop.unwatch(fd)
        os.close(fd)
