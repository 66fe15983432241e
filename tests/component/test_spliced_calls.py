"""A call over a socket whose large messages pass from pipe to socket by splice(2): the same bytes, in order."""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest

from casemate.calls.children import Children
from casemate.calls.spawn import spawn
from casemate.calls.spliced import LEAST, SplicedCall
from casemate.streams.loop import Loop
from casemate.streams.socket_stream import SocketStream
from casemate.wire.call_data import CallerSide
from casemate.wire.qrexec import DATA_STDERR, DATA_STDIN, DATA_STDOUT, HEADER
from tests.builders import wait_for

SECONDS = 60

ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each splice(2) moved."""
    moved: list[int] = []
    real = os.splice

    def counting(source: int, target: int, count: int, flags: int = 0) -> int:
        moved.append(real(source, target, count, flags=flags))
        return moved[-1]

    monkeypatch.setattr(os, "splice", counting)
    return moved


class Caller(threading.Thread):
    """The other end: sends messages and collects what comes, in blocking calls."""

    def __init__(self, sock: socket.socket, messages: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.sock, self.messages = sock, messages
        self.side = CallerSide()
        self.streams = {DATA_STDOUT: bytearray(), DATA_STDERR: bytearray()}
        self.start()

    def run(self) -> None:
        sender = threading.Thread(target=self.send, daemon=True)
        sender.start()
        while data := self.sock.recv(100_000):
            for kind, piece in self.side.feed(data):
                if kind in self.streams:
                    self.streams[kind] += piece
        sender.join(SECONDS)

    def send(self) -> None:
        for message in self.messages:
            self.sock.sendall(HEADER.pack(DATA_STDIN, len(message)) + message)
        self.sock.sendall(HEADER.pack(DATA_STDIN, 0))


def served(loop: Loop, script: str, messages: list[bytes]) -> Caller:
    ours, theirs = socket.socketpair()
    children = Children(loop)
    pid, stdin, stdout, stderr = spawn(["/bin/sh", "-c", script], ENVIRONMENT, None)
    call = SplicedCall.of_program(loop, SocketStream(loop, ours), stdin, stdout, stderr, look=children.look)
    children.add(pid, call.exited)
    with theirs:
        caller = Caller(theirs, messages)
        deadline = loop.later(SECONDS, loop.stop)
        while caller.is_alive() and deadline.action is not None:
            loop.once(0.05)
        assert not caller.is_alive()
    return caller


def pieces(sizes: list[int]) -> list[bytes]:
    made = random.Random(7)
    return [made.randbytes(size) for size in sizes]


def test_messages_of_all_sizes_come_back_unchanged(loop: Loop, spliced: list[int]) -> None:
    sizes = [1, 65536, LEAST - 1, LEAST, 7, 65536, 65536, 20_000, 3, 65535, *[65536] * 200, 9, *[LEAST] * 50, 1]
    messages = pieces(sizes)

    def most_was_spliced() -> bool:
        spliced.clear()
        caller = served(loop, "exec cat", messages)
        assert caller.streams[DATA_STDOUT] == b"".join(messages)
        assert caller.side.status() == 0
        return sum(spliced) > sum(sizes)  # of the two ways, most bytes of at least one went by splicing

    # How much waits in a pipe when we look is the scheduler's affair: on a busy machine often too little to splice.
    wait_for(most_was_spliced, SECONDS)


def test_two_outputs_do_not_tear_each_others_messages(loop: Loop, spliced: list[int]) -> None:
    messages = pieces([65536] * 100)
    caller = served(loop, "exec tee /dev/stderr", messages)
    assert caller.streams[DATA_STDOUT] == caller.streams[DATA_STDERR] == b"".join(messages)
    assert sum(spliced) > 65536


def test_input_for_a_program_that_reads_none_is_thrown_away(loop: Loop) -> None:
    caller = served(loop, "exec <&-; echo done; exit 3", pieces([65536] * 64))
    assert caller.streams[DATA_STDOUT] == b"done\n"
    assert caller.side.status() == 3


def test_bytes_that_another_process_has_read_are_noticed(loop: Loop) -> None:
    # A program can open the pipe of its own output for reading, through /proc. A message was promised by then.
    ours, theirs = socket.socketpair()
    stream = SocketStream(loop, ours)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    os.write(writing, b"half")
    with theirs, pytest.raises(BlockingIOError):
        stream.splice_message(b"head", reading, 8)
    stream.abort()
    os.close(reading)
    os.close(writing)
