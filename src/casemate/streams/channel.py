"""A mux on a descriptor: reads, writes, and hands each stream's events to its handler."""

from __future__ import annotations

import os

from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.wire import mux
from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol
else:
    Protocol = object  # typing is too slow to import in a guest


HIGH_WATER = 256 * 1024
"""Limit of a qube's channel (bytes): bytes waiting for the channel; above it no stream may add more."""


_PORT_READ = 4096
_SMALL = 4096
_PORT_BATCH = 64 * 1024
IN_PLACE_BEFORE, IN_PLACE_AFTER = mux.HEADER.size, mux.TRAILER
"""Room around the bytes of ``write_in_place``."""


class StreamHandler:
    """What the owner of one end of a stream implements."""

    def on_data(self, data: bytes | memoryview) -> None:
        """Bytes of the peer, good only during the call; call ``stream.consumed`` when they have gone on."""

    def on_eof(self) -> None:
        """The peer sends no more."""

    def on_room(self) -> None:
        """The stream takes bytes again after it had none left."""

    def on_abort(self) -> None:
        """The stream is gone in both directions."""


class ByteStream(Protocol):
    """What a StreamHandler needs of its stream, whatever carries it."""

    handler: StreamHandler

    def room(self) -> int:
        """Bytes that may be written now: LEAST_ROOM (wire.mux) or more, or 0; then ``on_room`` tells of more."""

    def write(self, data: bytes | memoryview) -> None:
        """Send ``data``, at most ``room`` bytes."""

    def write_in_place(self, buffer: memoryview) -> None:
        """Send what lies in a buffer with room around it (IN_PLACE_BEFORE, IN_PLACE_AFTER); it is free again after."""

    def consumed(self, count: int) -> None:
        """``count`` bytes handed to ``on_data`` have gone on."""

    def eof(self) -> None:
        """Send no more."""

    def abort(self) -> None:
        """Give the stream up; the handler is not called again."""


class Stream:
    """One open stream of a channel."""

    __slots__ = ("_channel", "handler", "number")

    def __init__(self, channel: Channel, number: int, handler: StreamHandler) -> None:
        self._channel = channel
        self.number = number
        self.handler = handler

    def room(self) -> int:
        """Bytes that may be written now. After 0, ``on_room`` tells when there is more."""
        channel = self._channel
        if channel.streams.get(self.number) is not self:
            return 0
        if channel.mux.pending >= HIGH_WATER:
            channel.starved.add(self.number)
            return 0
        return channel.mux.room(self.number)

    def write(self, data: bytes | memoryview) -> None:
        """Send ``data``, at most ``room`` bytes."""
        if self._channel.streams.get(self.number) is self:
            self._channel.mux.send(self.number, data)
            if len(data) < _SMALL:
                self._channel.flush_later()
            else:
                self._channel.flush_soon()

    def write_in_place(self, buffer: memoryview) -> None:
        """Send what lies in a buffer with room around it (IN_PLACE_BEFORE, IN_PLACE_AFTER); it is free again after."""
        if self._channel.streams.get(self.number) is self:
            self._channel.send_in_place(self.number, buffer)

    def consumed(self, count: int) -> None:
        """``count`` bytes handed to ``on_data`` have gone on."""
        if self._channel.streams.get(self.number) is self:
            self._channel.mux.consumed(self.number, count)
            self._channel.flush_soon()

    def eof(self) -> None:
        """Send no more."""
        if self._channel.streams.get(self.number) is self:
            self._channel.mux.eof(self.number)
            self._channel.tidy(self.number)
            self._channel.flush_later()

    def abort(self) -> None:
        """Give the stream up; the handler is not called again."""
        if self._channel.streams.pop(self.number, None) is self:
            self._channel.mux.abort(self.number)
            self._channel.flush_soon()


class Channel:
    """Owns a non-blocking descriptor and the mux on it.

    ``on_open(payload)`` decides about a stream that the peer opens: it is given the stream with a handler that does
    nothing and sets its own, or aborts it. ``on_session`` is called when a session begins, ``on_lost(reason)`` when the
    descriptor has ended or (host) the peer broke the protocol; the owner then closes it. ``port``: the descriptor is a
    virtio-serial port, whose driver returns at most 4096 bytes a read and makes a transfer of each piece of a writev.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        host: bool,
        on_open: Callable[[Stream, bytes], None],
        on_session: Callable[[], None],
        on_lost: Callable[[str], None],
        port: bool = False,
    ) -> None:
        self.mux = mux.Mux(host)
        self.streams: dict[int, Stream] = {}
        self.starved: set[int] = set()
        self._loop = loop
        self._fd = fd
        self._on_open = on_open
        self._on_session = on_session
        self._on_lost = on_lost
        self._session = 0
        self._port = port
        self._closed = False
        self._in_events = False
        self._mask = READ
        self._flushing = False
        loop.watch(fd, READ, self._ready)

    def open(self, payload: bytes, handler: StreamHandler) -> Stream:
        """Open a stream to the peer."""
        number = self.mux.open(payload)
        stream = Stream(self, number, handler)
        self.streams[number] = stream
        self.flush_soon()
        return stream

    def reset(self) -> None:
        """Host: begin a session."""
        self._abandon()
        self.mux.reset(os.urandom(mux.NONCE))
        self.flush_soon()

    def close(self) -> None:
        """Stop using the descriptor (it is not closed) and abort all streams."""
        if not self._closed:
            self._closed = True
            self._loop.forget(self._fd)
            self._abandon()

    def tidy(self, number: int) -> None:
        """Forget a stream that the mux has finished."""
        if not self.mux.has(number):
            self.streams.pop(number, None)

    def _abandon(self) -> None:
        old, self.streams = self.streams, {}
        self.starved.clear()
        for stream in old.values():
            stream.handler.on_abort()

    def send_in_place(self, number: int, buffer: memoryview) -> None:
        """See Stream.write_in_place; copies only what the descriptor does not take."""
        if self.mux.output or self._closed or self._in_events:
            self.mux.send(number, bytes(buffer[IN_PLACE_BEFORE:-IN_PLACE_AFTER]))
            self.flush_soon()
            return
        self.mux.send_in_place(number, buffer)
        while buffer:
            try:
                buffer = buffer[os.write(self._fd, buffer) :]
            except BlockingIOError:
                self.mux.output.append(bytes(buffer))
                self.mux.pending += len(buffer)
                self._write()
                return
            except OSError as error:
                self._on_lost(f"write failed: {error.strerror}")
                return

    def flush_later(self) -> None:
        """Write what is waiting when this round of the loop is over: small messages go together."""
        if not self._flushing:
            self._flushing = True
            self._loop.later(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.flush_soon()

    def flush_soon(self) -> None:
        """Write what is waiting, now if possible."""
        if self._closed or self._in_events:
            return
        self._write()

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._write()
        if mask & READ and not self._closed:
            self._read()
        elif mask & HANGUP and not self._closed:
            self._on_lost("closed by the peer")

    def _read(self) -> None:
        view, count = self.mux.space(), 0
        if self._port:
            view = view[:_PORT_BATCH]
        try:
            while True:
                got = os.readv(self._fd, (view[count:],))
                count += got
                if not self._port or got != _PORT_READ or count == len(view):
                    break
        except BlockingIOError:
            if count == 0:
                return
        except OSError as error:
            self._on_lost(f"read failed: {error.strerror}")
            return
        if count == 0:
            self._on_lost("closed by the peer")
            return
        self._in_events = True
        try:
            for kind, number, payload in self.mux.received(count):
                if self.mux.sessions != self._session:
                    self._begin()
                self._dispatch(kind, number, payload)
                if self._closed:
                    return
            if self.mux.sessions != self._session:
                self._begin()
            elif not self.mux.connected and self.streams:
                self._abandon()
        except ProtocolError as error:
            self._on_lost(str(error))
        finally:
            self._in_events = False
            if not self._closed:
                self._write()

    def _begin(self) -> None:
        self._session = self.mux.sessions
        self._abandon()
        self._on_session()

    def _dispatch(self, kind: int, number: int, payload: bytes | memoryview) -> None:
        if kind == mux.OPEN:
            stream = Stream(self, number, StreamHandler())
            self.streams[number] = stream
            self._on_open(stream, bytes(payload))
            return
        found = self.streams.get(number)
        if found is None:
            return
        if kind == mux.DATA:
            found.handler.on_data(payload)
        elif kind == mux.GRANT:
            found.handler.on_room()
        elif kind == mux.EOF:
            found.handler.on_eof()
            self.tidy(number)
        else:
            del self.streams[number]
            found.handler.on_abort()

    def _write(self) -> None:
        output = self.mux.output
        while output:
            batch = [output[i] for i in range(min(len(output), 64))]
            if self._port and len(batch) > 1:
                joined = b"".join(batch)
                for _piece in batch:
                    output.popleft()
                output.appendleft(joined)
                batch = [joined]
            try:
                count = os.writev(self._fd, batch)
            except BlockingIOError:
                break
            except OSError as error:
                self._on_lost(f"write failed: {error.strerror}")
                return
            self.mux.pending -= count
            for piece in batch:
                if count < len(piece):
                    if count:
                        output[0] = memoryview(piece)[count:]
                    break
                count -= len(piece)
                output.popleft()
            else:
                continue
            break
        mask = READ | (WRITE if output else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self._fd, mask, self._ready)
        if self.starved and self.mux.pending < HIGH_WATER // 2:
            waiting, self.starved = self.starved, set()
            for number in waiting:
                stream = self.streams.get(number)
                if stream is not None:
                    stream.handler.on_room()
