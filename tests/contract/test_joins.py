"""``join`` of every kind of stream with others: bytes, ends, bounds and kills pass through."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from casemate.streams.join import join
from casemate.streams.loop import Loop
from casemate.streams.stream import WINDOW
from tests.contract.stream_kinds import (
    HALF,
    KERNEL,
    KINDS,
    Pair,
    peer_sends,
)


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
