"""The contract of ``casemate.streams.stream.Stream``, held against every kind of stream."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from casemate.streams.channel import MAX_HELD, MAX_OWED, Channel
from casemate.streams.loop import READ, Loop
from casemate.streams.mux_stream import MuxStream
from casemate.streams.stream import LEAST_ROOM, WINDOW, Handler
from casemate.wire import mux
from tests.contract.stream_kinds import (
    HALF,
    KERNEL,
    KINDS,
    SECONDS,
    Pair,
    RawPeer,
    Recorder,
    peer_sends,
    send_all,
)


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


def test_room_that_comes_in_the_round_of_the_hang_up(loop: Loop) -> None:
    pair = KINDS["socket-drain"](loop)
    pair.told.open = False
    peer_sends(pair, b"before the end" * 100)
    pair.rest()
    reading, writing = os.pipe()

    def room(_mask: int) -> None:
        loop.unwatch(reading)
        pair.told.open = True
        pair.stream.resume()

    # Ready before the hang-up is, so told of first in the round that tells of both.
    loop.watch(reading, READ, room)
    os.write(writing, b"x")
    pair.peer.kill()
    pair.until(lambda: pair.told.ends)
    assert pair.told.data == b"before the end" * 100 and pair.told.ends[0] == "eof"
    for fd in (reading, writing):
        os.close(fd)


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


def test_a_guest_that_does_not_read_what_it_is_owed_is_not_read_from(loop: Loop) -> None:
    """What it asks for meanwhile stays in its own queue, and is served when it has read."""
    ours, theirs = socket.socketpair()
    asked: list[bytes] = []
    host = Channel(loop, ours.fileno(), True, lambda _stream, payload: asked.append(payload), lambda: None, pytest.fail)
    ours.setblocking(False)
    theirs.setblocking(False)
    guest = mux.Mux(host=False)
    end = time.monotonic() + SECONDS

    def read_until(condition: Callable[[], object]) -> None:
        while not condition():
            assert time.monotonic() < end
            loop.once(0.01)
            with contextlib.suppress(BlockingIOError):
                for _event in guest.feed(theirs.recv(1 << 20)):
                    pass
            while guest.output:
                theirs.sendall(bytes(guest.output.popleft()))

    host.reset()
    read_until(lambda: host.mux.connected)
    while host.mux.pending <= MAX_OWED:
        host.open(bytes(mux.MAX_PAYLOAD), Handler())
    for number in range(10):
        guest.open(b"%d" % number)
    while guest.output:
        theirs.sendall(bytes(guest.output.popleft()))
    for _ in range(20):
        loop.once(0.01)
    assert asked == []
    read_until(lambda: len(asked) == 10)
    host.close()
    for sock in (ours, theirs):
        sock.close()
