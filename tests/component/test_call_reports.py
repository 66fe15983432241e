"""What a link tells the broker of calls besides the question: how a call ended; and when it asks."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.link.guest_calls import CALL_BURST, CALLS_PER_SECOND
from casemate.streams.exactly import exactly
from casemate.wire.qrexec import (
    DATA_EXIT_CODE,
    DATA_STDOUT,
    HEADER,
    SERVICE_CONNECT,
    SERVICE_REFUSED,
    message,
    trigger4,
)
from tests.component.rig import Rig, rig


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as value:
        value.service("test.True", "exit 0")
        assert value.call("test.True+")[0] == 0
        yield value


@pytest.fixture
def door(made: Rig) -> Iterator[socket.socket]:
    """The broker's socket, served by the test."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(made.directory / "broker.sock"))
        listening.listen(512)
        listening.settimeout(10)
        yield listening


def ask(made: Rig, call: str = "test.Far+x") -> socket.socket:
    """A program of the guest asks for a call."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(made.guest_run / "qrexec-agent.sock"))
    sock.settimeout(10)
    sock.sendall(trigger4("vault", call))
    return sock


def request(listening: socket.socket) -> tuple[socket.socket, dict[str, object]]:
    connection = listening.accept()[0]
    connection.settimeout(10)
    return connection, json.loads(connection.recv(4096))


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (message(DATA_EXIT_CODE, b"\x03\0\0\0"), b"exit 3\n"),
        (message(DATA_EXIT_CODE, b"\xff\xff\xff\xff"), b"exit 255\n"),
        (message(DATA_STDOUT, b"abc"), b""),
        (b"", b""),
    ],
)
def test_the_end_of_a_call(made: Rig, door: socket.socket, end: bytes, told: bytes) -> None:
    caller = ask(made)
    connection, body = request(door)
    assert body == {"service": "test.Far+x", "target": "vault"}
    ours, theirs = socket.socketpair()
    with ours, caller:
        with theirs:
            socket.send_fds(connection, [b'{"result": "allow"}\n'], [theirs.fileno()])
        assert HEADER.unpack(exactly(caller, 8))[0] == SERVICE_CONNECT
        exactly(caller, 40)
        for at in range(len(end)):  # however it is cut
            ours.sendall(end[at : at + 1])
        ours.shutdown(socket.SHUT_WR)
        exactly(caller, len(end))
        caller.close()
        found = b""
        while more := connection.recv(100):
            found += more
    assert found == told


def test_a_qube_that_asks_too_often_waits(made: Rig, door: socket.socket) -> None:
    """None of its calls is refused for their number, and the broker is not asked faster than it may be."""
    asked: list[dict[str, object]] = []
    count = int(CALL_BURST) * 2

    def serve() -> None:
        while len(asked) < count:
            connection, body = request(door)
            with connection:
                asked.append(body)
                connection.sendall(b'{"result": "deny"}\n')

    door.settimeout(60)
    serving = threading.Thread(target=serve)
    begin = time.monotonic()
    serving.start()
    callers = [ask(made) for _ in range(count)]
    for caller in callers:
        assert HEADER.unpack(exactly(caller, 8))[0] == SERVICE_REFUSED
        caller.close()
    serving.join(120)
    assert time.monotonic() - begin >= 0.9 * (count - CALL_BURST) / CALLS_PER_SECOND
    assert asked == [{"service": "test.Far+x", "target": "vault"}] * count


def test_a_call_that_is_given_up_while_it_waits_asks_nobody(made: Rig, door: socket.socket) -> None:
    asked = []
    door.settimeout(3)

    def serve() -> None:
        try:
            while True:
                connection, _body = request(door)
                with connection:
                    asked.append(connection)
                    connection.sendall(b'{"result": "deny"}\n')
        except TimeoutError:
            pass

    serving = threading.Thread(target=serve)
    serving.start()
    callers = [ask(made) for _ in range(int(CALL_BURST) + 100)]
    for caller in callers[int(CALL_BURST) :]:
        caller.close()
    for caller in callers[: int(CALL_BURST)]:
        assert HEADER.unpack(exactly(caller, 8))[0] == SERVICE_REFUSED
        caller.close()
    serving.join()
    # Some may have had their turn before they were given up.
    assert CALL_BURST <= len(asked) < CALL_BURST + 100
