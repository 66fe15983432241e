"""A guest whose agent hangs: the link notices, calls that brought it nothing end, others wait for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli.silence import ask
from casemate.link.liveness import reason
from casemate.wire.link import control_message
from casemate.wire.qrexec import DATA_STDIN, HEADER, exec_message, message
from tests.builders import wait_for
from tests.component.rig import Rig


class Hanging:
    """A link and an agent that can be stopped; calls end after one second of silence."""

    def __init__(self, directory: Path) -> None:
        self.rig = Rig(directory)
        self.rig.link_settings["silent_seconds"] = 1.0
        self.rig.service("test.Cat", "exec cat")
        self.rig.service("test.Quiet", "sleep 6; echo done")
        self.rig.start_link()
        self.agent = self.rig.start_agent()
        assert self.rig.call("test.Cat", b"x") == (0, b"x", b"")
        self.address = str(directory / "link.sock")
        self.log = directory / "link.log"

    def stop(self) -> None:
        os.kill(self.agent.pid, signal.SIGSTOP)
        wait_for(lambda: Path(f"/proc/{self.agent.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self) -> None:
        if self.agent.poll() is None:
            os.kill(self.agent.pid, signal.SIGCONT)

    def begun(self, service: str, stdin: bytes = b"") -> socket.socket:
        sock = self.rig.caller()
        sock.sendall(exec_message(f"DEFAULT:QUBESRPC {service} dom0"))
        if stdin:
            sock.sendall(message(DATA_STDIN, stdin))
        return sock


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    made = Hanging(tmp_path)
    yield made
    made.go_on()
    made.rig.close()


def test_a_link_tells_whether_its_agent_answers(hanging: Hanging) -> None:
    assert ask([hanging.address, hanging.address + ".none"]) == [{"answers": True, "silent": 0.0, "why": ""}, None]
    hanging.stop()
    begin = time.monotonic()
    told = ask([hanging.address] * 3, within=0.5)
    assert [one and one["answers"] for one in told] == [False] * 3
    assert time.monotonic() - begin < 5, "all at once"
    time.sleep(0.5)
    again = ask([hanging.address], within=0.2)[0]
    assert again is not None and again["silent"] >= 0.7, "counted from the first question"
    hanging.go_on()
    wait_for(lambda: (ask([hanging.address])[0] or {}).get("answers"))


def test_a_call_that_brought_nothing_ends_and_others_wait(hanging: Hanging) -> None:
    hanging.stop()
    empty, told, fed = hanging.begun("test.Cat"), hanging.begun("test.Cat"), hanging.begun("test.Cat", b"data")
    told.sendall(message(DATA_STDIN, b""))  # it has no input: that is nothing either
    for sock in (empty, told):
        sock.settimeout(30)
        assert sock.recv(1) == b"", "ended without an exit status"
    assert "the agent has not answered for" in hanging.log.read_text()
    fed.settimeout(0.2)
    with pytest.raises(TimeoutError):
        fed.recv(1)
    hanging.go_on()
    fed.settimeout(30)
    fed.sendall(message(DATA_STDIN, b""))
    data = b""
    while more := fed.recv(65536):
        data += more
    assert b"data" in data and data.endswith(HEADER.pack(0x193, 4) + bytes(4))
    assert hanging.rig.call("test.Cat", b"y") == (0, b"y", b"")


def test_a_service_that_says_nothing_is_left_in_peace(hanging: Hanging) -> None:
    """It is at work for six times as long as a silent agent would be waited for."""
    assert hanging.rig.call("test.Quiet") == (0, b"done\n", b"")
    assert "has not answered" not in hanging.log.read_text()


def test_a_session_that_ends_is_no_sign_of_life(hanging: Hanging) -> None:
    hanging.stop()
    sock = hanging.rig.caller()
    sock.sendall(control_message({"op": "answers", "within": 1.0}))
    hanging.agent.kill()
    hanging.agent.wait()
    _kind, length = HEADER.unpack(sock.recv(8, socket.MSG_WAITALL))
    assert json.loads(sock.recv(length, socket.MSG_WAITALL))["answers"] is False
    sock.close()


@pytest.mark.parametrize(
    ("console", "why"),
    [
        (b"", ""),
        (b"login: ", ""),
        (b"x" * 9000 + b"\nOut of memory: Killed process 12 (cat)\n", "its memory is full"),
        (b"Out of memory" + b"x" * 9000, ""),
        (b"Kernel panic - not syncing", "its kernel has panicked"),
    ],
)
def test_what_a_console_says_of_it(console: bytes, why: str) -> None:
    assert reason(console) == why
