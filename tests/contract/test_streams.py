"""The contract of ``casemate.streams.stream.Stream``, held against every kind, and joins of each with each."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from casemate.calls.vchan_data import DataChannel
from casemate.streams.channel import MAX_HELD, Channel, MuxStream
from casemate.streams.descriptors import PipeStream, SocketStream
from casemate.streams.join import join
from casemate.streams.loop import Loop
from casemate.streams.stream import LEAST_ROOM, WINDOW, Handler
from casemate.wire import mux
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


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Pair]:
    made = KINDS[request.param](loop)
    yield made
    made.stream.abort()
    made.clean()


@pytest.fixture(params=HALF)
def half(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Pair]:
    made = KINDS[request.param](loop)
    yield made
    made.stream.abort()
    made.clean()


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


def test_bytes_arrive_in_order_in_both_directions(pair: Pair) -> None:
    out, back = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(3_000_000)
    send_all(pair, out)
    pair.receive(lambda: len(pair.peer.data) >= len(out))
    peer_sends(pair, back)
    pair.until(lambda: len(pair.told.data) >= len(back))
    assert pair.peer.data == out and pair.told.data == back and not pair.told.ends


def test_what_is_filled_in_place_is_what_arrives(pair: Pair) -> None:
    sent = b""
    for size in (1, 7, 4095, 4096, 40000):
        piece = random.Random(size).randbytes(size)
        pair.receive(lambda: pair.stream.room() >= 65536 - 8)
        space = pair.stream.space()
        assert len(space) <= pair.stream.room()
        space[:size] = piece
        pair.stream.commit(size)
        pair.stream.writev([b"between", memoryview(b"two")])
        sent += piece + b"betweentwo"
    pair.receive(lambda: len(pair.peer.data) >= len(sent))
    assert pair.peer.data == sent


def test_a_peer_that_does_not_read_closes_the_window(pair: Pair) -> None:
    sent = 0
    for _ in range(100):
        while room := pair.stream.room():
            assert room >= LEAST_ROOM
            pair.stream.write(bytes(min(room, 50_000)))
            sent += min(room, 50_000)
        pair.loop.once(0)
    assert sent <= 2 * WINDOW + KERNEL
    pair.told.calls.clear()
    pair.rest()
    assert "room" not in pair.told.calls
    pair.receive(lambda: "room" in pair.told.calls and pair.stream.room())
    pair.receive(lambda: len(pair.peer.data) == sent)
    assert not pair.told.ends


def test_what_is_written_beyond_the_room_is_kept(pair: Pair) -> None:
    data = random.Random(3).randbytes(2 * WINDOW + 12345)
    pair.stream.write(data)
    pair.stream.write(b"last")
    assert pair.stream.room() == 0
    pair.receive(lambda: len(pair.peer.data) >= len(data) + 4)
    assert pair.peer.data == data + b"last"


def test_a_handler_without_room_is_given_a_window_at_most(pair: Pair) -> None:
    pair.told.open = False
    sent = 0
    for _ in range(60):
        sent += pair.peer.send(bytes(50_000))
        pair.loop.once(0.001)
    assert len(pair.told.data) <= WINDOW and sent <= 2 * WINDOW + KERNEL
    held = len(pair.told.data)
    pair.rest()
    assert len(pair.told.data) == held
    pair.told.open = True
    pair.stream.resume()
    pair.until(lambda: len(pair.told.data) == sent)


def test_our_end_comes_after_all_data_and_the_other_direction_goes_on(half: Pair) -> None:
    data = random.Random(4).randbytes(WINDOW)
    half.stream.write(data)
    half.stream.eof()
    assert half.stream.room() == 0
    half.stream.write(b"too late")
    half.receive(lambda: half.peer.ended)
    assert half.peer.data == data
    peer_sends(half, b"still " * 1000)
    half.until(lambda: len(half.told.data) == 6000)
    assert half.told.ends == []
    half.peer.eof()
    half.until(lambda: "closed" in half.told.calls)
    assert half.told.ends == ["eof", "closed"]


def test_the_peers_end_comes_after_all_data_and_the_other_direction_goes_on(half: Pair) -> None:
    data = random.Random(5).randbytes(WINDOW)
    half.peer.take()
    peer_sends(half, data)
    half.peer.eof()
    half.until(lambda: half.told.ends)
    assert half.told.data == data and half.told.ends == ["eof"]
    send_all(half, data)
    half.stream.eof()
    half.receive(lambda: half.peer.ended)
    half.until(lambda: "closed" in half.told.calls)
    assert half.peer.data == data and half.told.ends == ["eof", "closed"]


def test_the_end_waits_for_a_handler_without_room(half: Pair) -> None:
    half.told.open = False
    peer_sends(half, b"before the end" * 100)
    half.peer.eof()
    half.rest()
    half.told.open = True
    half.stream.resume()
    half.until(lambda: half.told.ends)
    assert half.told.data == b"before the end" * 100 and half.told.ends == ["eof"]


@pytest.mark.parametrize("kind", ["socket", "socket-drain", "pipe"])
def test_output_without_a_reader_is_thrown_away_and_input_goes_on(loop: Loop, kind: str) -> None:
    pair = KINDS[kind](loop)
    assert isinstance(pair.peer, RawPeer)
    pair.peer.stop_reading()
    for _ in range(50):
        room = pair.stream.room()
        assert room
        pair.stream.write(bytes(min(room, 65536)))
        loop.once(0)
    peer_sends(pair, b"still" * 1000)
    pair.until(lambda: len(pair.told.data) == 5000)
    assert not pair.told.ends
    pair.peer.eof()
    pair.until(lambda: len(pair.told.ends) == 2)
    assert pair.told.ends[0] == "eof"
    pair.clean()


def test_after_abort_the_handler_is_not_called(pair: Pair) -> None:
    pair.stream.write(b"x")
    pair.peer.send(b"unread")
    pair.stream.abort()
    pair.receive(lambda: pair.peer.ended)
    pair.stream.abort()
    pair.stream.write(b"nothing")
    pair.stream.eof()
    pair.rest()
    assert pair.told.calls == [] and pair.told.data == b"" and pair.stream.closed


def test_a_killed_peer_is_told_of_once(pair: Pair) -> None:
    peer_sends(pair, b"last words")
    pair.until(lambda: pair.told.data)
    pair.peer.kill()

    def step() -> bool:
        if pair.stream.room():
            pair.stream.write(b"is anybody there?")
        return "abort" in pair.told.calls

    pair.until(step)
    pair.rest()
    assert pair.told.data == b"last words"
    assert pair.told.ends in (["abort"], ["eof", "abort"]) and pair.stream.closed


def test_finish_delivers_what_waits_and_takes_no_more(pair: Pair) -> None:
    data = random.Random(6).randbytes(WINDOW - 100)
    pair.stream.write(data)
    pair.stream.finish()
    pair.rest()
    with contextlib.suppress(BrokenPipeError):
        pair.peer.send(b"too late")
    pair.receive(lambda: pair.peer.ended)
    pair.until(lambda: pair.stream.closed)
    assert pair.peer.data == data and pair.told.data == b""


@pytest.mark.parametrize("kind", ["socket", "socket-drain", "pipe", "vchan-data"])
def test_descriptors_are_closed_once(loop: Loop, kind: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        pair = KINDS[kind](loop)
        pair.peer.kill()
        end = time.monotonic() + SECONDS
        while not pair.stream.closed and time.monotonic() < end:
            pair.stream.write(b"x")
            loop.once(0.01)
        pair.clean()
    assert len(os.listdir("/proc/self/fd")) == before and not loop.busy()


# -- joins


@pytest.fixture(params=[(one, other) for one in HALF for other in ("socket", "pipe", "mux-host")])
def joined(request: pytest.FixtureRequest, loop: Loop) -> Iterator[tuple[Pair, Pair, list[str]]]:
    one, other = (KINDS[kind](loop) for kind in request.param)
    done: list[str] = []
    join(one.stream, other.stream, done.append)
    yield one, other, done
    for pair in (one, other):
        pair.stream.abort()
        pair.clean()


Joined = tuple[Pair, Pair, list[str]]


def test_a_join_carries_both_directions_and_each_ends_for_itself(joined: Joined) -> None:
    one, other, done = joined
    there, back = random.Random(7).randbytes(2_000_000), random.Random(8).randbytes(1_500_000)
    rest = memoryview(there)

    def step() -> bool:
        nonlocal rest
        rest = rest[one.peer.send(rest) :]
        other.peer.take()
        return not rest

    one.until(step)
    one.peer.eof()
    other.receive(lambda: other.peer.ended)
    assert other.peer.data == there and done == []
    rest = memoryview(back)

    def step_back() -> bool:
        nonlocal rest
        rest = rest[other.peer.send(rest) :]
        one.peer.take()
        return not rest

    one.until(step_back)
    other.peer.eof()
    one.receive(lambda: one.peer.ended)
    assert one.peer.data == back
    one.until(lambda: done)
    one.rest()
    assert done == [""] and one.stream.closed and other.stream.closed


def test_a_reader_that_stops_stops_the_writer(joined: Joined) -> None:
    one, other, _done = joined
    sent = 0
    for _ in range(200):
        sent += one.peer.send(bytes(50_000))
        one.loop.once(0.0005)
    assert sent <= 4 * WINDOW + 2 * KERNEL
    other.receive(lambda: len(other.peer.data) == sent)


@pytest.mark.parametrize("ended_first", [False, True])
def test_a_killed_end_ends_the_other(joined: Joined, ended_first: bool) -> None:
    one, other, done = joined
    peer_sends(one, b"last words")
    other.receive(lambda: other.peer.data)
    if ended_first:
        one.peer.eof()
        other.receive(lambda: other.peer.ended)
    one.peer.kill()

    def step() -> object:
        other.peer.take()
        with contextlib.suppress(OSError):
            other.peer.send(b"x")
        return done

    other.until(step)
    other.receive(lambda: other.peer.ended)
    assert other.peer.data == b"last words" and len(done) == 1


def test_what_all_readers_of_a_guest_hold_is_bounded(loop: Loop) -> None:
    """Each stream stays within its windows, and the sum of many within MAX_HELD: then the guest is not read."""
    sockets = socket.socketpair()
    handlers: list[Recorder] = []

    def opened(stream: MuxStream, _payload: bytes) -> None:
        stream.handler = Recorder()
        stream.handler.open = False
        handlers.append(stream.handler)
        streams.append(stream)

    streams: list[MuxStream] = []
    for sock in sockets:
        sock.setblocking(False)
    host = Channel(loop, sockets[0].fileno(), True, opened, lambda: None, pytest.fail)
    guest = Channel(loop, sockets[1].fileno(), False, lambda *_: None, lambda: None, pytest.fail)
    host.reset()
    end = time.monotonic() + SECONDS
    while not guest.mux.connected:
        assert time.monotonic() < end
        loop.once(0.01)
    senders = [guest.open(b"x", Handler()) for _ in range(100)]
    sent = 0
    for _ in range(400):
        for sender in senders:
            if room := min(sender.room(), 65536):
                sender.write(bytes(room))
                sent += room
        loop.once(0.001)
    held = sum(len(handler.data) for handler in handlers)
    assert MAX_HELD <= held <= MAX_HELD + mux.BUFFER
    for handler, stream in zip(handlers, streams, strict=True):
        handler.open = True
        stream.resume()
    while sum(len(handler.data) for handler in handlers) < sent:
        assert time.monotonic() < end
        loop.once(0.01)
    for channel, sock in ((host, sockets[0]), (guest, sockets[1])):
        channel.close()
        sock.close()
