"""A call between real qubes about which a person is asked, and the trace of it."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.streams.ready import readable
from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live


@pytest.fixture
def policy(world: World) -> Iterator[Path]:
    """A policy file of the test's own, that asks."""
    path = world.settings.policy_dir / "30-ask.policy"
    path.write_text("test.Ask * work @anyvm ask default_target=asked\n")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def asked(world: World) -> Iterator[str]:
    """A halted qube to choose."""
    world.run("qvm-create", "--label", "black", "asked")
    yield "asked"
    world.run("qvm-kill", "asked", status=None)
    wait_for(lambda: world.state("asked") == "Halted")
    world.run("qvm-remove", "-f", "asked")


class Line:
    """A socket of lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("rwb")

    def read(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.file.readline())
        return found

    def write(self, **body: object) -> None:
        self.file.write(json.dumps(body).encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def _call(world: World) -> subprocess.Popen[bytes]:
    return world.start("qvm-run", "--pass-io", "work", "qrexec-client-vm asked test.Ask+x; echo status $?")


def test_a_call_that_a_person_decides(
    world: World, usable: str, asked: str, policy: Path, request: pytest.FixtureRequest
) -> None:
    refused = _call(world).communicate(timeout=60)
    assert b"status 126" in refused[0]  # nobody to ask
    # Closed also when this fails: a prompter that stays would be asked in place of the next test's.
    for line in (trace := Line(world.settings.trace_socket), prompter := Line(world.settings.prompt_socket)):
        request.addfinalizer(line.close)
    assert trace.read()["phase"] == "watching"
    for answer, status in (("deny", 126), ("allow:asked", 127)):
        call = _call(world)
        question = prompter.read()
        while "ask" not in question:
            question = prompter.read()
        body = question["ask"]
        assert isinstance(body, dict)
        assert (body["source"], body["service"], body["argument"], body["default_target"]) == (
            "work", "test.Ask", "+x", "asked",
        )  # fmt: skip
        prompter.write(id=question["id"], answer=answer)
        out, err = call.communicate(timeout=120)
        assert f"status {status}".encode() in out, (out, err)
        if status == 126:
            assert refused == (out, err)  # whatever the reason, the caller sees the same
        steps, ended = [], set()
        while not ended >= {"work", "dom0"}:  # in either order
            steps.append(trace.read())
            if steps[-1]["phase"] == "ended":
                ended.add(steps[-1]["source"])
        phases = [step["phase"] for step in steps if step["source"] == "work"]
        ends = [step.get("status") for step in steps if step["phase"] == "ended"]
        if status == 126:
            assert phases == ["asked", "asking", "refused", "ended"]
        else:
            # The qube was started for it, and has no such service.
            assert phases == ["asked", "asking", "decided", "started", "connected", "ended"] and 127 in ends
            assert world.state("asked") == "Running"
    text = world.run("casemate", "policy", "explain", "work", "test.Ask+x", "asked").stdout
    assert b"a person is asked" in text and b"30-ask.policy:1" in text


def test_prompt_and_trace_as_a_person_uses_them(world: World, usable: str, policy: Path) -> None:
    world.run("qvm-create", "--label", "black", "halted")
    policy.write_text("test.Ask * work halted ask\n")
    trace = world.start("casemate", "trace", "--json", "halted")
    steps: list[dict[str, object]] = []
    reading = threading.Thread(target=lambda: steps.extend(json.loads(line) for line in trace.stdout))
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("casemate", ["casemate", "prompt"], world.environment)
    try:
        assert trace.stderr.readline().startswith(b"Watching")
        reading.start()
        until(terminal, b"Ctrl-C ends this")
        evaluation = world.start("qrexec-policy-exec", "work", "halted", "test.Ask+y")
        shown = until(terminal, b"Allow?")
        assert b"source    work" in shown and b"argument  +y" in shown and b"1  halted" in shown
        os.write(terminal, b"1\n")
        assert b"result=allow" in evaluation.communicate(timeout=20)[0] and evaluation.returncode == 0
        evaluation = world.start("qrexec-policy-exec", "work", "halted", "test.Ask+z")
        until(terminal, b"Allow?")
        os.kill(child, signal.SIGKILL)  # a prompt that is killed: no
        assert evaluation.communicate(timeout=20)[0] == b"result=deny\n" and evaluation.returncode == 1
        world.run("qvm-run", "--no-autostart", "halted", "true", status=1)
        world.run("qvm-run", usable, "true")  # is none of its business
        wait_for(lambda: len([step for step in steps if step["phase"] == "ended"]) >= 1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)
        trace.terminate()
        trace.wait()
        reading.join(10)
        world.run("qvm-remove", "-f", "halted")
    told = [(step["source"], step["phase"], step.get("cause")) for step in steps]
    assert told == [
        ("work", "refused", "ask denied"), ("dom0", "asked", None), ("dom0", "refused", "not running"),
        ("dom0", "ended", None),
    ]  # fmt: skip


def until(terminal: int, text: bytes) -> bytes:
    """What is shown on a terminal up to a text."""
    shown = b""
    while text not in shown:
        assert readable([terminal], 20), shown
        shown += os.read(terminal, 4096)
    return shown
