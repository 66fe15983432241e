"""A guest floods its link with each kind of message: memory stays bounded, and in the end the channel is closed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.streams.frame_budget import FLOOD_SECONDS
from casemate.wire import mux, qdb, qrexec
from casemate.wire.link import CALL, DATABASE, READY, control_message
from tests.component.rig import Rig
from tests.component.test_security_calls import RawGuest, trigger

LIMIT_MIB = 32
SECONDS = 3.0
HEADER = struct.Struct("<II")


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


class Flooder:
    """Writes frames as a guest, as fast as the link takes them."""

    def __init__(self, made: Rig, **database: str) -> None:
        self.rig = made
        self.guest = RawGuest(made, **database)
        self.pid = made.processes[-1].pid
        self.sock = self.guest.sock
        self.number = 1001
        self.tag = self.guest.channel.mux._tag
        for _ in range(5):
            self.guest.loop.once(0.05)
        self.closed = False
        self.most = rss_mib(self.pid)
        self.read = 0

    def frame(self, number: int, kind: int, payload: bytes = b"") -> bytes:
        return mux.HEADER.pack(number, len(payload), kind) + payload + self.tag

    def open(self, payload: bytes) -> bytes:
        self.number += 2
        return self.frame(self.number, mux.OPEN, payload)

    def flood(self, make: Callable[[], bytes], reading: bool, seconds: float = SECONDS) -> None:
        """Send what ``make`` gives until it is over or the channel is closed; ``reading``: take what comes back."""
        self.sock.setblocking(False)
        end = time.monotonic() + seconds
        data = memoryview(b"")
        while time.monotonic() < end and not self.closed:
            if not data:
                data = memoryview(b"".join(make() for _ in range(500)))
            blocked = True
            try:
                with contextlib.suppress(BlockingIOError):
                    data = data[self.sock.send(data) :]
                    blocked = False
                if reading:
                    with contextlib.suppress(BlockingIOError):
                        while got := self.sock.recv(1 << 16):
                            self.read += len(got)
                        self.closed = True
            except OSError:
                self.closed = True
            self.most = max(self.most, rss_mib(self.pid))
            if blocked:
                time.sleep(0.01)

    def status(self) -> dict[str, object]:
        """The link still answers its host."""
        with self.rig.caller() as sock:
            sock.sendall(control_message({"op": "status"}))
            _kind, size = HEADER.unpack(sock.recv(8, socket.MSG_WAITALL))
            return json.loads(sock.recv(size, socket.MSG_WAITALL))  # type: ignore[no-any-return]


@pytest.fixture
def flooder(tmp_path: Path) -> Iterator[Flooder]:
    made = Rig(tmp_path)
    yield Flooder(made)
    made.close()


def request(service: bytes) -> bytes:
    body = trigger(service=service + b"\0")
    return CALL + HEADER.pack(qrexec.TRIGGER_SERVICE4, len(body)) + body


FLOODS: dict[str, Callable[[Flooder], Callable[[], bytes]]] = {
    "refused calls": lambda f: lambda: f.open(request(b"no/such")) + f.frame(f.number, mux.EOF),
    "calls without a broker": lambda f: lambda: f.open(request(b"test.Any")) + f.frame(f.number, mux.EOF),
    "opened and aborted": lambda f: lambda: f.open(request(b"test.Any")) + f.frame(f.number, mux.ABORT),
    "grants": lambda f: grants(f),
    "late frames": lambda f: late(f),
    "database reads": lambda f: database(f, qdb.record(qdb.MULTIREAD, "")),
    "database writes": lambda f: database(f, qdb.record(qdb.WRITE, "/qubes-x", b"y" * 100)),
    "database answers": lambda f: database(f, qdb.record(qdb.OK, "/x")),
}


def grants(f: Flooder) -> Callable[[], bytes]:
    f.sock.setblocking(True)
    f.sock.sendall(f.open(DATABASE))
    number = f.number
    return lambda: f.frame(number, mux.GRANT, struct.pack("<I", 0))


def late(f: Flooder) -> Callable[[], bytes]:
    f.sock.setblocking(True)
    f.sock.sendall(f.open(DATABASE) + f.frame(f.number, mux.ABORT))
    number = f.number
    return lambda: f.frame(number, mux.DATA, b"x")


def database(f: Flooder, record: bytes) -> Callable[[], bytes]:
    """Records on the mirror's stream, never more than the window unless it is given back."""
    f.sock.setblocking(True)
    f.sock.sendall(f.open(DATABASE))
    first = f.frame(f.number, mux.DATA, qdb.record(qdb.MULTIREAD, ""))
    number, sent = f.number, 0

    def make() -> bytes:
        nonlocal first, sent
        out, first = first, b""
        # A guest that does not read does not see its window either: it goes on, and that is a violation.
        sent += len(record)
        return out + f.frame(number, mux.DATA, record)

    return make


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("kind", FLOODS)
def test_memory_is_bounded_under_each_flood(flooder: Flooder, kind: str, reading: bool) -> None:
    flooder.flood(FLOODS[kind](flooder), reading)
    assert flooder.most <= LIMIT_MIB, f"{flooder.most:.0f} MiB"
    assert flooder.status()["why"] in ("", "the qube broke the protocol too often; start it anew")


def test_a_database_that_is_not_read_takes_no_more_requests(tmp_path: Path) -> None:
    """The guest asks for a database that is larger than its window, never takes it, and goes on writing."""
    made = Rig(tmp_path)
    try:
        flooder = Flooder(made, **{f"/big/{number}": "x" * 3000 for number in range(200)})
        flooder.flood(database(flooder, qdb.record(qdb.WRITE, "/qubes-x", b"y" * 3000)), False, seconds=5)
        assert flooder.most <= LIMIT_MIB, f"{flooder.most:.0f} MiB"
    finally:
        made.close()


def test_a_flood_that_goes_on_loses_its_channel(flooder: Flooder) -> None:
    make = FLOODS["opened and aborted"](flooder)
    begin = time.monotonic()
    flooder.flood(make, True, seconds=FLOOD_SECONDS * 4)
    assert flooder.closed and time.monotonic() - begin > FLOOD_SECONDS / 2
    assert flooder.status()["strikes"] == 1
    assert flooder.most <= LIMIT_MIB


def test_a_guest_that_does_not_read_is_not_read_from(flooder: Flooder) -> None:
    """What it asks for then stays in its own queue: what the link has taken stands still."""
    make = FLOODS["refused calls"](flooder)
    flooder.flood(make, False, seconds=2)
    if flooder.closed:
        pytest.fail("closed before its time")
    before = sum(int(part) for part in Path(f"/proc/{flooder.pid}/stat").read_text().split()[13:15])
    flooder.flood(make, False, seconds=1)
    spent = sum(int(part) for part in Path(f"/proc/{flooder.pid}/stat").read_text().split()[13:15]) - before
    assert spent < 0.5 * os.sysconf("SC_CLK_TCK"), "the link works for a guest that does not read"


def test_a_half_used_budget_is_not_a_violation(flooder: Flooder) -> None:
    """Bursts of calls, with pauses, are what honest guests do."""
    for _ in range(3):
        for _ in range(60):
            flooder.sock.setblocking(True)
            flooder.sock.sendall(flooder.open(request(b"no/such")) + flooder.frame(flooder.number, mux.EOF))
        time.sleep(0.1)
        flooder.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while flooder.sock.recv(1 << 16):
                pass
    assert flooder.status()["strikes"] == 0


def test_violations_are_counted_once_each_and_never_forgotten(tmp_path: Path) -> None:
    """Being ready in between makes none undone; one batch of bad records is one violation."""
    made = Rig(tmp_path)
    try:
        flooder = Flooder(made)
        for count in (1, 2):
            bad = flooder.frame(flooder.number + 2, mux.DATA, qdb.record(qdb.READ, "/x"))
            flooder.sock.setblocking(True)
            flooder.sock.sendall(flooder.open(DATABASE) + bad * 3)
            while flooder.sock.recv(1 << 16):
                pass
            assert flooder.status()["strikes"] == count
            flooder = Flooder.__new__(Flooder)
            flooder.rig = made
            flooder.number = 1001
            guest = RawGuest.__new__(RawGuest)
            guest.attach(made.accept())
            flooder.guest, flooder.sock, flooder.tag = guest, guest.sock, guest.channel.mux._tag
            for _ in range(5):
                guest.loop.once(0.05)
            assert flooder.status() == {"ready": True, "strikes": count, "why": ""}
    finally:
        made.close()


def test_ready_is_said_once_a_session(flooder: Flooder) -> None:
    flooder.sock.settimeout(30)
    flooder.sock.sendall(flooder.open(READY + b"{}"))
    while flooder.sock.recv(1 << 16):
        pass
    assert flooder.status()["strikes"] == 1


@pytest.mark.parametrize("how", ["header", "payload", "drops"])
def test_half_a_frame_has_a_deadline_and_is_a_violation(tmp_path: Path, how: str) -> None:
    """From its first byte to its last; single bytes in between do not put it off."""
    made = Rig(tmp_path)
    made.link_settings["half_frame_seconds"] = 1.0
    try:
        flooder = Flooder(made)
        flooder.sock.setblocking(True)
        flooder.sock.settimeout(30)
        frame = flooder.open(request(b"test.Ok"))
        begin = time.monotonic()
        flooder.sock.sendall(frame[: 3 if how == "header" else -1 if how == "payload" else 1])
        if how == "drops":
            with contextlib.suppress(OSError):
                for byte in frame[1:]:
                    flooder.sock.sendall(bytes((byte,)))
                    time.sleep(0.2)
        with contextlib.suppress(OSError):
            while flooder.sock.recv(1 << 16):
                pass
        assert time.monotonic() - begin >= 0.9
        assert flooder.status()["strikes"] == 1
        assert "half a frame" in (tmp_path / "link.log").read_text()
    finally:
        made.close()


def test_frames_that_are_complete_in_time_are_no_violation(tmp_path: Path) -> None:
    """For longer than the deadline each read ends within a frame, as it does under load."""
    made = Rig(tmp_path)
    made.link_settings["half_frame_seconds"] = 1.0
    try:
        flooder = Flooder(made)
        flooder.sock.setblocking(True)
        data = b"".join(flooder.open(request(b"no/such")) + flooder.frame(flooder.number, mux.EOF) for _ in range(30))
        frame = len(data) // 30
        for at in range(0, len(data), frame):
            flooder.sock.sendall(data[max(0, at - 5) : at + frame - 5])  # five bytes wait for the next round
            time.sleep(0.08)
        flooder.sock.sendall(data[-5:])
        time.sleep(1.5)  # nothing is cut now, so nothing is late
        assert flooder.status()["strikes"] == 0
    finally:
        made.close()
