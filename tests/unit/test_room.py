"""A stream never has so little room that its sender waits for more while the stream thinks that it has some."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from casemate.calls.service import ServiceCall
from casemate.calls.vchan_data import DataChannel
from casemate.streams.loop import Loop
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import WINDOW, Handler
from casemate.wire import mux
from casemate.wire import qrexec_control as control
from casemate.wire.call_data import CallerSide
from casemate.wire.qrexec import DATA_STDIN, HEADER


@pytest.mark.parametrize("left", range(mux.LEAST_ROOM + 2))
def test_a_grant_is_told_of_whenever_there_was_too_little(left: int) -> None:
    host, guest = mux.Mux(host=True), mux.Mux(host=False)

    def carry(one: mux.Mux, other: mux.Mux) -> list[int]:
        data = b"".join(bytes(piece) for piece in one.output)
        one.output.clear()
        return [kind for kind, _number, _payload in other.feed(data)]

    host.reset(b"0123456789abcdef")
    carry(host, guest)
    carry(guest, host)
    number = host.open(b"x")
    host.send(number, bytes(mux.WINDOW - left))
    assert host.room(number) == (left if left >= mux.LEAST_ROOM else 0)
    carry(host, guest)
    guest.consumed(number, mux.WINDOW - left)
    assert (mux.GRANT in carry(guest, host)) is (left < mux.LEAST_ROOM)
    assert host.room(number) == mux.WINDOW


class Told(Handler):
    def __init__(self) -> None:
        self.times = 0

    def on_room(self) -> None:
        self.times += 1


@pytest.mark.parametrize("kind", ["socket", "data"])
@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 27, 28, 63])
def test_a_stream_of_a_socket_tells_of_room(kind: str, left: int) -> None:
    loop = Loop()
    ours, theirs = socket.socketpair()
    window = WINDOW
    told = Told()
    if kind == "socket":
        stream: SocketStream | DataChannel = SocketStream(loop, ours, told)
    else:
        stream = DataChannel(loop, ours, lambda _stream: None)
        stream.handler = told
        theirs.sendall(control.hello(4))
    loop.once(0.1)
    told.times = 0
    # Fill the socket first, so that all of what follows is kept.
    while stream.pending < window - left:
        missing = window - left - stream.pending
        stream.write(bytes(min(65536, missing)))
    assert stream.pending == window - left and stream.room() == 0
    theirs.settimeout(5)
    taken = 0
    while stream.pending:
        taken += len(theirs.recv(65536))
        loop.once(0.01)
    assert told.times == 1 and stream.room() >= mux.LEAST_ROOM
    stream.abort()
    theirs.close()
    loop.close()


@pytest.mark.parametrize("left", [1, 8, 9, 20, 27])
def test_a_service_whose_end_meets_little_room_ends_all_the_same(left: int) -> None:
    """The status needs a few bytes more than there are: it comes when there are enough."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    stream = SocketStream(loop, ours)
    fill = WINDOW - left
    while stream.pending < fill:
        stream.write(bytes(min(65536, fill - stream.pending)))
    stdin, stdout = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    call = ServiceCall.of_program(loop, stream, stdin[1], stdout[0], None)
    os.write(stdout[1], b"said at the end")
    os.close(stdout[1])
    os.close(stdin[0])
    call.exited(5)
    theirs.settimeout(5)
    heard = b""
    while data := theirs.recv(65536):
        heard += data
        for _ in range(4):
            loop.once(0)
    start = heard.rstrip(b"\0").find(b"\x92\x01") if b"\x92\x01" in heard else heard.find(b"\x91\x01")
    side = CallerSide()
    out = b"".join(bytes(view) for _kind, view in side.feed(heard[start:]))
    assert out == b"said at the end" and side.status() == 5
    theirs.close()
    loop.close()


def test_input_that_came_before_its_caller_was_killed_reaches_the_service() -> None:
    """More than the pipe holds: the rest waits in the call until the service reads it."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    stdin, stdout = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    ServiceCall.of_program(loop, SocketStream(loop, ours), stdin[1], stdout[0], None)
    sent = b"".join(HEADER.pack(DATA_STDIN, 50_000) + bytes(50_000) for _ in range(4))
    theirs.setblocking(False)
    while sent:
        with contextlib.suppress(BlockingIOError):
            sent = sent[theirs.send(sent) :]
        loop.once(0.01)
    for _ in range(10):
        loop.once(0)
    theirs.close()
    loop.once(0.1)
    with pytest.raises(BrokenPipeError):
        os.write(stdout[1], b"nobody reads this")
    os.set_blocking(stdin[0], False)
    got, ended = 0, False
    while not ended:
        loop.once(0.01)
        with contextlib.suppress(BlockingIOError):
            data = os.read(stdin[0], 65536)
            got += len(data)
            ended = not data
    assert got == 200_000
    os.close(stdin[0])
    os.close(stdout[1])
    loop.close()
