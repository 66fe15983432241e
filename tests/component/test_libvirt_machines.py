"""The libvirt adapter on real QEMU: machines outlive their owner, are found again, and can be ended."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import casemate
from casemate.client.transport import START_SECONDS
from casemate.host.guest_kernel import BuiltKernel
from casemate.host.process import Runner
from casemate.host.template_build import build_template
from casemate.settings import Settings, load
from casemate.streams.ready import readable
from casemate.wire.recipe import Recipe
from tests.builders import settings_in, short_directory

SOURCE = Path(casemate.__file__).parent.parent


class Owner:
    """A process that owns the hypervisor."""

    def __init__(self, settings: Settings, seconds: float | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "machine_driver.py")],
            env={**os.environ, **settings.environment(), "PYTHONPATH": str(SOURCE)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        ready = [self.process.stdout] if seconds is None else readable([self.process.stdout], seconds)
        if not ready:
            self.kill()
            pytest.fail(f"libvirt is not open after {seconds} s")
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the owner ended"
        return json.loads(line)

    def do(self, verb: str, **data: str) -> Any:
        """Tell it one thing."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {json.dumps(data)}\n" if data else f"{verb}\n")
        self.process.stdin.flush()
        return self._answer()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        """End it in order."""
        self.process.communicate(timeout=30)


class Shown:
    """Shows how a build goes on."""

    def line(self, text: str) -> None:
        print(text)

    def ended(self, step: str) -> None:
        print(step, "has ended")


@pytest.fixture(scope="module")
def kernel() -> BuiltKernel:
    """The guests' kernel; from the cache when it is there."""
    return asyncio.run(build_template(load(), Runner(), Recipe("bookworm"), Shown())).kernel


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A state of its own, whose path is short enough for sockets."""
    with short_directory() as state:
        state.chmod(0o711)
        yield settings_in(state, cache=load().cache, prefix="casemate-component-")


@pytest.fixture
def machine(settings: Settings, kernel: BuiltKernel) -> dict[str, str]:
    """What the owner needs to make one machine."""
    run = settings.state / "q"
    run.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(run, 1_900_000_007, 1_900_000_000)
    disk = settings.state / "disk"
    disk.write_bytes(bytes(1 << 20))
    files = {}
    for name in ("vmlinuz", "initrd"):
        files[name] = settings.state / name
        shutil.copy(getattr(kernel, name), files[name])
    return {
        "name": "work", "uuid": str(uuid4()), "run": str(run), "disk": str(disk),
        "kernel": str(files["vmlinuz"]), "initrd": str(files["initrd"]),
    }  # fmt: skip


@pytest.fixture
def owners(settings: Settings, machine: dict[str, str]) -> Iterator[list[Owner]]:
    """Owners that a test makes; whatever happens, no machine is left."""
    made: list[Owner] = []
    yield made
    for owner in made:
        owner.kill()
    last = Owner(settings)
    last.do("destroy", uuid=machine["uuid"])
    last.do("undefine", uuid=machine["uuid"])
    last.leave()


def console(machine: dict[str, str]) -> str:
    """All that a machine says on its console until it ends."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(60)
        stream.connect(f"{machine['run']}/console.sock")
        said = bytearray()
        while chunk := stream.recv(4096):
            said += chunk
        return said.decode("ascii", "replace")


def test_machine_outlives_its_owner_and_is_found_again(
    settings: Settings, machine: dict[str, str], owners: list[Owner]
) -> None:
    first = Owner(settings)
    owners.append(first)
    assert first.do("list") == []
    assert first.do("info", uuid=machine["uuid"]) is None
    assert first.do("start_paused", **machine) is None
    assert first.do("info", **machine) == ["work", "Paused", True]
    first.kill()

    second = Owner(settings)
    owners.append(second)
    assert second.do("list") == [["work", "Paused", True]]
    assert second.do("resume", **machine) is None
    assert second.do("resume", **machine) is None, "a machine that runs goes on running"
    assert "casemate: a guest runs here" in console(machine)
    assert second.do("await", **machine, kind="stopped") == ["work", "stopped"]
    assert second.do("info", **machine) == ["work", "Halted", False]
    log = settings.state / "libvirt/log/qemu" / f"{settings.prefix}work.log"
    assert log.exists()
    assert second.do("undefine", **machine) is None
    assert not log.exists()
    assert second.do("undefine", **machine) is None
    assert second.do("list") == []


def test_machines_are_found_again_where_nothing_is_known_of_qemu(
    settings: Settings, machine: dict[str, str], owners: list[Owner]
) -> None:
    first = Owner(settings)
    owners.append(first)
    assert first.do("start_paused", **machine) is None
    first.kill()
    cache = settings.state / "libvirt/cache"
    cache.unlink()
    cache.mkdir()  # what libvirt found out about QEMU is lost: it tries QEMU out before it looks at the machine

    second = Owner(settings, seconds=START_SECONDS)  # unless trials are reaped each costs 20 s, and there are four
    owners.append(second)
    assert list(cache.glob("qemu/capabilities/*.xml")), "this tested nothing: libvirt did not try QEMU out"
    assert second.do("list") == [["work", "Paused", True]]


def qemu_of(settings: Settings, name: str) -> int:
    return int((settings.state / "libvirt/run/qemu" / f"{settings.prefix}{name}.pid").read_text())


def test_machine_is_confined_and_ends_when_told(
    settings: Settings, machine: dict[str, str], owners: list[Owner]
) -> None:
    owner = Owner(settings)
    owners.append(owner)
    assert owner.do("start_paused", **machine) is None
    assert owner.do("start_paused", **machine)["error"] == "NotHaltedError"
    pid = qemu_of(settings, "work")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert (status["CapEff"].strip("0"), status["NoNewPrivs"], status["Seccomp"]) == ("", "1", "2")
    uid = 1_900_000_007 if os.geteuid() == 0 else os.geteuid()
    assert status["Uid"].split() == [str(uid)] * 4
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert "-nodefaults" in words and "-no-user-config" in words
    assert "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in words
    assert not any("usb" in word and "usb=off" not in word for word in words)

    assert owner.do("destroy", **machine) is None
    assert not Path(f"/proc/{pid}").exists()
    assert owner.do("await", **machine, kind="stopped") == ["work", "stopped"]
    assert owner.do("destroy", **machine) is None
    assert owner.do("destroy", uuid=str(uuid4())) is None


def test_killed_qemu_is_a_crash(settings: Settings, machine: dict[str, str], owners: list[Owner]) -> None:
    owner = Owner(settings)
    owners.append(owner)
    assert owner.do("start_paused", **machine) is None
    os.kill(qemu_of(settings, "work"), 9)
    assert owner.do("await", **machine, kind="crashed") == ["work", "crashed"]
    assert owner.do("info", **machine)[1:] == ["Halted", False]
    assert owner.do("start_paused", **machine) is None


def test_name_of_a_removed_qube_can_be_used_again(
    settings: Settings, machine: dict[str, str], owners: list[Owner]
) -> None:
    owner = Owner(settings)
    owners.append(owner)
    old = {**machine, "uuid": str(uuid4())}
    assert owner.do("define", **old) is None
    assert owner.do("define", **machine) is None
    assert owner.do("info", **old) is None
    assert owner.do("list") == [["work", "Halted", False]]


def test_errors_are_ours(settings: Settings, machine: dict[str, str], owners: list[Owner]) -> None:
    owner = Owner(settings)
    owners.append(owner)
    assert owner.do("resume", **machine)["error"] == "NotFoundError"
    assert owner.do("define", **machine) is None
    assert owner.do("resume", **machine)["error"] == "NotStartedError"
    missing = owner.do("start_paused", **{**machine, "disk": "/nonexistent"})
    assert missing["error"] == "HypervisorError" and "/nonexistent" in missing["message"]
    long = owner.do("start_paused", **{**machine, "run": "/tmp/" + "x" * 120})
    assert "the system allows 107" in long["message"]
    assert owner.do("list") == [["work", "Halted", False]]
