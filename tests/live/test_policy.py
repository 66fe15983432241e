"""A call between real qubes about which a person is asked, and the trace of it."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.world import World, wait_for

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


def test_a_call_that_a_person_decides(world: World, usable: str, asked: str, policy: Path) -> None:
    refused = _call(world).communicate(timeout=60)
    assert b"status 126" in refused[0]  # nobody to ask
    trace, prompter = Line(world.settings.trace_socket), Line(world.settings.prompt_socket)
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
        steps = []
        while not (steps and steps[-1]["phase"] == "ended" and steps[-1]["source"] == "dom0"):
            steps.append(trace.read())
        phases = [step["phase"] for step in steps if step["source"] == "work"]
        ends = [step.get("status") for step in steps if step["phase"] == "ended"]
        if status == 126:
            assert phases == ["asked", "asking", "refused", "ended"]
        else:
            # The qube was started for it, and has no such service.
            assert phases == ["asked", "asking", "decided", "started", "connected", "ended"] and 127 in ends
            assert world.state("asked") == "Running"
    trace.close()
    prompter.close()
    text = world.run("casemate", "policy", "explain", "work", "test.Ask+x", "asked").stdout
    assert b"a person is asked" in text and b"30-ask.policy:1" in text
