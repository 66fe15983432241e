"""Every kind of stream with a peer at its other end, for the tests of the contract and of joins."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

import pytest

from casemate.calls.vchan_data import DataChannel
from casemate.streams.channel import Channel
from casemate.streams.loop import Loop
from casemate.streams.mux_stream import MuxStream
from casemate.streams.pipe_stream import PipeStream
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import WINDOW, Handler
from casemate.wire import qrexec_control as control

SECONDS = 20
KERNEL = 1 << 20
"""More than what the kernel keeps of a socket or a pipe."""


class Recorder(Handler):
    """Remembers what it was called with; ``open`` is whether it has room."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls: list[str] = []
        self.open = True

    def room(self) -> int:
        return WINDOW if self.open else 0

    def on_data(self, data: memoryview) -> None:
        assert data and "eof" not in self.calls
        self.data += data

    def on_eof(self) -> None:
        self.calls.append("eof")

    def on_room(self) -> None:
        self.calls.append("room")

    def on_abort(self, why: str) -> None:
        assert why
        self.calls.append("abort")

    def on_closed(self) -> None:
        self.calls.append("closed")

    @property
    def ends(self) -> list[str]:
        return [call for call in self.calls if call != "room"]


class RawPeer:
    """The other end of a descriptor stream: bare descriptors."""

    def __init__(self, read: int, write: int, sock: socket.socket | None = None) -> None:
        self.read_fd, self.write_fd, self.sock = read, write, sock
        self.data = bytearray()
        self.ended = False
        for fd in {read, write}:
            os.set_blocking(fd, False)

    def send(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self.write_fd, data)
        except BlockingIOError:
            return 0

    def take(self) -> None:
        """Read what is there."""
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                try:
                    got = os.read(self.read_fd, 1 << 16)
                except ConnectionResetError:
                    got = b""
                self.data += got
                self.ended = not got

    def eof(self) -> None:
        if self.sock is not None:
            self.sock.shutdown(socket.SHUT_WR)
        else:
            os.close(self.write_fd)
            self.write_fd = -1

    def stop_reading(self) -> None:
        if self.sock is not None:
            self.sock.shutdown(socket.SHUT_RD)
        else:
            os.close(self.read_fd)
            self.read_fd = -1

    def kill(self) -> None:
        if self.sock is not None:
            self.sock.close()
        else:
            for fd in (self.read_fd, self.write_fd):
                if fd >= 0:
                    os.close(fd)
        self.read_fd = self.write_fd = -1


class MuxPeer:
    """The other end of a stream of a channel."""

    def __init__(self, stream: MuxStream, channel: Channel) -> None:
        self.stream = stream
        self.channel = channel
        self.recorder = Recorder()
        self.recorder.open = False
        stream.handler = self.recorder

    @property
    def data(self) -> bytearray:
        return self.recorder.data

    @property
    def ended(self) -> bool:
        return bool(self.recorder.ends)

    def send(self, data: bytes | memoryview) -> int:
        count = min(len(data), self.stream.room())
        if count:
            self.stream.write(data[:count])
        return count

    def take(self) -> None:
        self.recorder.open = True
        self.stream.resume()

    def eof(self) -> None:
        self.stream.eof()

    def kill(self) -> None:
        self.stream.abort()


Peer = RawPeer | MuxPeer
AnyStream = SocketStream | PipeStream | MuxStream | DataChannel


class Pair:
    """A stream, its recorder and its peer, on a loop."""

    def __init__(self, loop: Loop, stream: AnyStream, peer: Peer, clean: Callable[[], None]) -> None:
        self.loop, self.stream, self.peer, self.clean = loop, stream, peer, clean
        self.told = Recorder()
        stream.handler = self.told

    def until(self, true: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, (self.told.calls, len(self.told.data), len(self.peer.data))
            self.loop.once(0.01)

    def rest(self) -> None:
        """Let everything happen that can."""
        for _ in range(20):
            self.loop.once(0.002)

    def receive(self, true: Callable[[], object]) -> None:
        def step() -> object:
            self.peer.take()
            return true()

        self.until(step)


def make_socket(loop: Loop, drain: bool = False) -> Pair:
    ours, theirs = socket.socketpair()
    peer = RawPeer(theirs.fileno(), theirs.fileno(), theirs)
    return Pair(loop, SocketStream(loop, ours, drain=drain), peer, theirs.close)


def make_pipe(loop: Loop) -> Pair:
    (reading, their_writing), (their_reading, writing) = os.pipe(), os.pipe()
    peer = RawPeer(their_reading, their_writing)
    return Pair(loop, PipeStream(loop, reading, writing), peer, peer.kill)


def make_mux(loop: Loop, host: bool, port: bool = False) -> Pair:
    sockets = socket.socketpair()
    opened: list[MuxStream] = []
    ends: list[Channel] = []
    for number, sock in enumerate(sockets):
        sock.setblocking(False)
        ends.append(
            Channel(
                loop, sock.fileno(), number == 0, lambda stream, _payload: opened.append(stream), lambda: None,
                pytest.fail, port=port and number == 1,
            )
        )  # fmt: skip
    ends[0].reset()
    ours, theirs = (ends[0], ends[1]) if host else (ends[1], ends[0])
    deadline = time.monotonic() + SECONDS
    while not (ends[0].mux.connected and ends[1].mux.connected):
        assert time.monotonic() < deadline
        loop.once(0.01)
    stream = ours.open(b"x", Handler())
    while not opened:
        assert time.monotonic() < deadline
        loop.once(0.01)

    def clean() -> None:
        for channel, sock in zip(ends, sockets, strict=True):
            channel.close()
            sock.close()

    return Pair(loop, stream, MuxPeer(opened[0], theirs), clean)


def make_data(loop: Loop) -> Pair:
    ours, theirs = socket.socketpair()
    theirs.sendall(control.hello(control.DATA_VERSION))
    pair = Pair(
        loop,
        DataChannel(loop, ours, lambda _stream: None),
        RawPeer(theirs.fileno(), theirs.fileno(), theirs),
        theirs.close,
    )
    hello = control.hello(control.DATA_VERSION)
    pair.receive(lambda: len(pair.peer.data) == len(hello) and pair.stream.room())
    pair.peer.data.clear()
    pair.told.calls.clear()
    return pair


KINDS: dict[str, Callable[[Loop], Pair]] = {
    "socket": make_socket,
    "socket-drain": lambda loop: make_socket(loop, drain=True),
    "pipe": make_pipe,
    "mux-host": lambda loop: make_mux(loop, True),
    "mux-guest": lambda loop: make_mux(loop, False),
    "mux-port": lambda loop: make_mux(loop, False, port=True),
    "vchan-data": make_data,
}
HALF = [kind for kind in KINDS if kind != "vchan-data"]
"""Kinds whose directions end one by one. A vchan is never half closed."""


def send_all(pair: Pair, data: bytes) -> None:
    """Write as a writer should: never more than there is room for."""
    view = memoryview(data)

    def step() -> bool:
        nonlocal view
        while view and (room := pair.stream.room()):
            pair.stream.write(view[:room])
            view = view[room:]
        return not view

    pair.receive(step)


def peer_sends(pair: Pair, data: bytes) -> None:
    view = memoryview(data)

    def step() -> bool:
        nonlocal view
        view = view[pair.peer.send(view) :]
        return not view

    pair.until(step)
