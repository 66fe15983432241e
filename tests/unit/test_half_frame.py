"""The deadline of half a frame: counted from its first byte, and only while its reader reads."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from casemate.streams.channel import MAX_OWED, Channel
from casemate.streams.half_frame import HALF_FRAME_SECONDS, VARIABLE, HalfFrame, configured
from casemate.streams.loop import Loop
from casemate.wire import mux

SECONDS = 0.4


class Peer:
    """A host's channel whose guest is this test."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.ours, self.guest = socket.socketpair()
        self.ours.setblocking(False)
        self.lost: list[str] = []
        self.channel = Channel(
            self.loop, self.ours.fileno(), True, lambda stream, _payload: stream.abort(), lambda: None,
            self.lost.append, half_frame_seconds=SECONDS,
        )  # fmt: skip
        self.channel.reset()
        said = b""
        while len(said.partition(mux.RESET)[2]) < mux.NONCE:
            self.loop.once(0.02)
            said += self.guest.recv(65536)
        nonce = said.partition(mux.RESET)[2][: mux.NONCE]
        self.tag = nonce[:4]
        self.guest.sendall(mux.ACK + nonce)
        self.run(0.05)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.lost:
            self.loop.once(0.02)

    def frame(self, number: int) -> bytes:
        return mux.HEADER.pack(number, 1, mux.OPEN) + b"x" + self.tag


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.channel.close()
    made.loop.close()
    made.ours.close()
    made.guest.close()


def test_half_a_frame_is_a_violation_at_its_deadline(peer: Peer) -> None:
    begin = time.monotonic()
    peer.guest.sendall(peer.frame(1)[:-1])
    peer.run(20)
    assert peer.lost == ["half a frame, and then nothing"] and peer.channel.violation
    assert time.monotonic() - begin >= SECONDS


def test_a_frame_that_began_later_has_its_own_time(peer: Peer) -> None:
    """Each read ends within a frame, for longer than one may take."""
    rest = b""
    for number in range(1, 25, 2):
        frame = peer.frame(number)
        peer.guest.sendall(rest + frame[:3])
        rest = frame[3:]
        peer.run(SECONDS / 4)
    peer.guest.sendall(rest)
    peer.run(2 * SECONDS)
    assert peer.lost == []


def test_a_frame_that_waits_for_us_is_not_late(peer: Peer) -> None:
    """While the guest owes us a read we do not read: the rest of its frame may be in our own queue."""
    peer.guest.sendall(peer.frame(1)[:5])
    peer.run(SECONDS / 4)
    peer.channel.mux.put(bytes(2 * MAX_OWED))
    peer.channel.flush()
    peer.run(3 * SECONDS)
    assert peer.lost == []
    peer.guest.setblocking(False)
    begin, got = time.monotonic(), 0
    while got < 2 * MAX_OWED and time.monotonic() - begin < 20:
        try:
            got += len(peer.guest.recv(1 << 20))
        except BlockingIOError:
            peer.loop.once(0.01)
    begin = time.monotonic()
    peer.run(20)
    assert peer.lost and time.monotonic() - begin >= SECONDS * 0.7, "and then it has the whole time again"


def test_an_agent_waits_for_its_host(peer: Peer) -> None:
    ours, host = socket.socketpair()
    ours.setblocking(False)
    lost: list[str] = []
    channel = Channel(
        peer.loop, ours.fileno(), False, lambda stream, _payload: stream.abort(), lambda: None, lost.append,
        half_frame_seconds=0.1,
    )  # fmt: skip
    host.sendall(mux.RESET + bytes(16))
    peer.run(0.05)
    host.sendall(mux.HEADER.pack(2, 1, mux.OPEN))
    peer.run(0.5)
    assert not lost
    channel.close()
    ours.close()
    host.close()


def test_the_setting() -> None:
    assert configured({}) == configured({VARIABLE: "x"}) == configured({VARIABLE: "0"}) == HALF_FRAME_SECONDS == 30
    assert configured({VARIABLE: "nan"}) == configured({VARIABLE: "-1"}) == HALF_FRAME_SECONDS
    assert configured({VARIABLE: "0.5"}) == 0.5


def test_one_timer_however_often_is_read() -> None:
    loop, late = Loop(), list[bool]()
    half = HalfFrame(loop, 60, lambda: late.append(True))
    for whole in range(1000):
        half.read(True, whole)
        half.read(False, whole)
    assert len(loop._timers) == 1 and not late
    loop.close()
