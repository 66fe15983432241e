"""Link and agent as real processes, joined by a socket: calls, faults of either end, hostile bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.qdb.client import QubesDB
from casemate.wire.qrexec import exec_message
from tests.builders import wait_for
from tests.component.rig import Rig, rig


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as value:
        value.service("test.Cat", "exec cat")
        value.service("test.True", "exit 0")
        value.service("test.Seven", "cat >/dev/null; echo out; echo err >&2; exit 7")
        value.service("test.Sleep", "exec sleep 60")
        value.service("test.Kill", "kill -9 $$")
        value.service("test.Env", 'echo "$QREXEC_REMOTE_DOMAIN|$QREXEC_SERVICE_FULL_NAME|$QREXEC_SERVICE_ARGUMENT|$1"')
        value.service("test.Fill", "exec head -c 3000000 /dev/zero")
        yield value


def test_streams_and_status_pass_through(made: Rig) -> None:
    assert made.call("test.Seven", b"x") == (7, b"out\n", b"err\n")
    assert made.call("test.True+") == (0, b"", b"")
    assert made.call("test.Kill+")[0] == 137


def test_environment_says_who_calls(made: Rig) -> None:
    assert made.call("test.Env+a.b", source="work")[1] == b"work|test.Env+a.b|a.b|a.b\n"


def test_no_such_service_is_127_with_a_reason(made: Rig) -> None:
    status, out, err = made.call("test.Nothing+")
    assert (status, out) == (127, b"")
    assert b"no such service" in err


def test_megabytes_there_and_back_keep_their_hash(made: Rig) -> None:
    data = os.urandom(1 << 20) * 40
    status, out, _err = made.call("test.Cat", data)
    assert status == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_a_thousand_calls_sixteen_at_once_none_lost(made: Rig) -> None:
    async def many() -> list[int]:
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> int:
            async with gate:
                status, out, _err = await made.call_async("test.Cat", b"%d" % number)
                assert out == b"%d" % number
                return status

        return await asyncio.gather(*(one(n) for n in range(1000)))

    assert asyncio.run(many()) == [0] * 1000


def test_three_hundred_calls_at_once_into_one_qube_are_all_served(made: Rig) -> None:
    made.service("test.Slow", "sleep 0.2; exec cat")

    async def many() -> list[tuple[int, bytes]]:
        calls = (made.call_async("test.Slow", b"%d" % number) for number in range(300))
        return [(status, out) for status, out, _err in await asyncio.gather(*calls)]

    assert asyncio.run(many()) == [(0, b"%d" % number) for number in range(300)]


def test_two_hundred_programs_of_a_guest_call_at_once_and_its_channel_survives(made: Rig) -> None:
    from casemate.wire.qrexec import HEADER, SERVICE_REFUSED, trigger4

    assert made.call("test.True+")[0] == 0
    socks = []
    for _ in range(200):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(made.guest_run / "qrexec-agent.sock"))  # waits while the agent's queue is full
        sock.settimeout(20)
        sock.sendall(trigger4("other", "test.Nothing"))
        socks.append(sock)
    for sock in socks:
        assert HEADER.unpack(sock.recv(8))[0] == SERVICE_REFUSED  # there is no broker here
        sock.close()
    assert made.call("test.True+")[0] == 0
    assert "strike" not in (made.directory / "link.log").read_text()


def test_a_reader_that_stalls_harms_no_other_call(made: Rig) -> None:
    stalled = made.caller()
    stalled.sendall(exec_message("DEFAULT:QUBESRPC test.Fill dom0"))
    time.sleep(0.5)
    begin = time.monotonic()
    for _ in range(20):
        assert made.call("test.Cat", b"y" * 100000)[0] == 0
    assert time.monotonic() - begin < 20
    stalled.close()


def test_a_caller_that_goes_ends_its_service(made: Rig) -> None:
    made.service("test.Wait", f"echo $$ > {made.directory}/pid; cat > /dev/null; echo over > {made.directory}/over")
    sock = made.caller()
    sock.sendall(exec_message("DEFAULT:QUBESRPC test.Wait dom0"))
    wait_for(lambda: (made.directory / "pid").exists())
    sock.close()
    wait_for(lambda: (made.directory / "over").exists())


def test_database_on_both_ends(made: Rig) -> None:
    assert made.call("test.True+")[0] == 0
    host = QubesDB(str(made.directory / "qubesdb.sock"))
    guest = QubesDB(str(made.guest_run / "qubesdb.sock"))
    wait_for(lambda: guest.read("/name") == b"rig")
    guest.watch("/from-host")
    host.watch("/status/")
    host.write("/from-host", b"1")
    assert guest.read_watch() == "/from-host"
    assert guest.read("/from-host") == b"1"
    guest.write("/status/x", b"2")
    assert host.read_watch() == "/status/x"
    assert host.read("/status/x") == b"2"
    host.close()
    guest.close()


def test_a_killed_link_fails_calls_at_once_and_its_successor_serves(made: Rig) -> None:
    sock = made.caller()
    sock.sendall(exec_message("DEFAULT:QUBESRPC test.Sleep dom0"))
    time.sleep(0.3)
    link = made.processes[0]
    link.send_signal(signal.SIGKILL)
    link.wait()
    begin = time.monotonic()
    assert sock.recv(1) == b""
    assert time.monotonic() - begin < 20  # the service would sleep for 60 s
    sock.close()


class HostileGuest:
    """The guest's end of the channel in the hands of the test."""

    def __init__(self, made: Rig) -> None:
        self.made = made
        self.sock = made.accept()
        self.sock.settimeout(10)

    def session(self) -> bytes:
        """Answer the reset; returns the tag of the session."""
        from casemate.wire import mux

        data = b""
        while mux.RESET not in data or len(data.partition(mux.RESET)[2]) < 16:
            data += self.sock.recv(65536)
        nonce = data.partition(mux.RESET)[2][:16]
        self.sock.sendall(b"old bytes" + mux.ACK + nonce)
        return nonce[:4]


def test_hostile_bytes_close_the_channel_until_a_limit(tmp_path: Path) -> None:
    made = Rig(tmp_path)
    try:
        made.start_link()
        for _strike in range(5):
            guest = HostileGuest(made)
            guest.session()
            guest.sock.sendall(os.urandom(64) + b"\xff" * 64)
            assert drained(guest.sock)
            guest.sock.close()
        log = tmp_path / "link.log"
        wait_for(lambda: "broke the protocol too often" in log.read_text())
        assert made.call("test.True+")[0] == 255
    finally:
        made.close()


def drained(sock: socket.socket) -> bool:
    """True when the other end has closed."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_guest_tools_reach_the_broker_and_are_refused_without_one(made: Rig) -> None:
    wait_for(lambda: made.call("test.True+")[0] == 0)
    done = subprocess.run(
        [sys.executable, "-m", "casemate.agent.entry", "qrexec-client-vm",
         f"--agent-socket={made.guest_run}/qrexec-agent.sock", "other", "test.Service"],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")}, capture_output=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 126, done.stderr
    assert b"refused" in done.stderr


@pytest.mark.parametrize("how", ["never there", "gone after violations", "gone"])
def test_a_link_outlives_its_machine_for_a_while_only(tmp_path: Path, how: str) -> None:
    """Whatever the link knows last of its channel, nobody has to end it."""
    made = Rig(tmp_path)
    console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    console.bind(str(tmp_path / "console.sock"))
    console.listen()
    program = (
        "import sys; from casemate.link import link, __main__; link.LINGER_SECONDS = 0.2; sys.exit(__main__.main())"
    )
    real = made.spawn
    made.spawn = lambda argv, **options: real([sys.executable, "-S", "-c", program], **options)  # type: ignore[method-assign]
    try:
        if how == "never there":
            (tmp_path / "channel.sock").unlink()
        link = made.start_link()
        machine = console.accept()[0]
        if how == "gone after violations":
            for _strike in range(5):
                guest = HostileGuest(made)
                guest.session()
                guest.sock.sendall(os.urandom(64) + b"\xff" * 64)
                assert drained(guest.sock)
                guest.sock.close()
            wait_for(lambda: "too often" in (tmp_path / "link.log").read_text())
            time.sleep(0.5)
            assert link.poll() is None, "its machine still runs"
        elif how == "gone":
            made.accept().close()
        machine.close()
        assert link.wait(10) == 0
    finally:
        console.close()
        made.close()
