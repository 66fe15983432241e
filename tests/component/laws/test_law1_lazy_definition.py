"""Law 1: a machine is defined in libvirt at creation and just before start; looking at a qube never defines it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.settings import Settings
from tests.component.laws.processes import scaled

ROOT = Path(__file__).parents[3]


class Lab:
    """The daemon of lab.py and programs that use it."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(directory, directory / "run", directory / "cache", prefix=f"lab-{os.getpid()}-")
        for made in (self.settings.run, self.settings.policy_dir):
            made.mkdir(parents=True)
        path = f"{ROOT / 'src'}:{ROOT}"
        self.environment = {**os.environ, **self.settings.environment(), "PYTHONPATH": path, "CASEMATE_DEBUG": "1"}
        self.processes: list[subprocess.Popen[bytes]] = []
        with open(directory / "log", "wb") as log:
            self.daemon = self.spawn("tests.component.laws.lab", stderr=log)
        assert self.daemon.stdout is not None
        if self.daemon.stdout.readline() != b"ready\n":
            raise AssertionError(self.log())
        self.qubes = Qubes(Transport(self.settings, daemon=()))

    def spawn(self, module: str, *words: str, **options: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-m", module, *words],
            env=self.environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options,
        )  # fmt: skip
        self.processes.append(process)
        return process  # type: ignore[no-any-return]

    def log(self) -> str:
        return (self.settings.state / "log").read_text()[-4000:]

    def ask(self, *words: str) -> tuple[int, int, int, list[str]]:
        """Definitions, undefinitions and starts so far, and what libvirt lists now."""
        assert self.daemon.stdin is not None and self.daemon.stdout is not None
        self.daemon.stdin.write((" ".join(words or ("count",)) + "\n").encode())
        self.daemon.stdin.flush()
        answer = self.daemon.stdout.readline().decode().rstrip("\n").split(" ")
        assert len(answer) == 4, self.log()
        defined, undefined, started = map(int, answer[:3])
        return defined, undefined, started, [name for name in answer[3].split(",") if name]

    def names(self) -> list[str]:
        return sorted(q.name for q in self.qubes.listed() if q.klass != "AdminVM")

    def create(self, name: str) -> None:
        self.qubes.call("admin.vm.Create.StandaloneVM", "", "dom0", f"name={name} label=red")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def lab() -> Iterator[Lab]:
    directory = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))  # noqa: S108  (unix sockets want short paths)
    made = Lab(directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


def test_watchers_and_workers_on_the_same_names(lab: Lab) -> None:
    """4 watchers, 2 workers, and the daemon's own questions to libvirt without pause."""
    rounds = scaled(100, 1000)  # of each of two workers
    watchers = [lab.spawn("tests.component.laws.client", "watch") for _ in range(4)]
    workers = [
        lab.spawn("tests.component.laws.client", "churn", str(rounds), str(seed), "one", "two", "three")
        for seed in (1, 2)
    ]
    created = started = 0
    for worker in workers:
        out, _ = worker.communicate(timeout=280)
        assert worker.returncode == 0, (out, lab.log())
        one, other = out.split()
        created, started = created + int(one), started + int(other)
    for watcher in watchers:
        out, _ = watcher.communicate(b"stop\n", timeout=60)
        assert watcher.returncode == 0 and int(out) > 0, (out, lab.log())
    defined, undefined, really_started, known = lab.ask()
    assert created > rounds / 2 and started >= really_started > rounds / 2  # a start of one that runs is a success
    assert known == lab.names(), "libvirt lists a machine that the store lacks, or lacks one"
    assert (defined, undefined) == (
        created + really_started,
        created - len(known),
    ), "something else defined or undefined"
    for name in known:
        if lab.qubes.call("admin.vm.CurrentState", "", name).startswith("power_state=Halted") is False:
            lab.qubes.call("admin.vm.Kill", "", name)
        lab.qubes.call("admin.vm.Remove", "", name)
    for name in ("one", "two", "three"):
        lab.create(name)
    assert lab.ask()[3] == ["one", "three", "two"]


def test_looking_defines_nothing_and_starting_defines_again(lab: Lab) -> None:
    lab.create("one")
    uuid = lab.qubes.get("one", "uuid").text
    assert lab.ask()[:2] == (1, 0), "creation defines, once"
    assert lab.ask("forget", "one") == (1, 1, 0, [])
    for method, arg in (("admin.vm.CurrentState", ""), ("admin.vm.property.GetAll", ""), ("admin.vm.List", ""),
                        ("admin.vm.property.Get", "xid"), ("admin.vm.volume.List", "")):  # fmt: skip
        lab.qubes.call(method, arg, "one")
    assert lab.qubes.call("admin.vm.CurrentState", "", "one").startswith("power_state=Halted")
    assert lab.qubes.get("one", "xid").text == "-1"
    assert lab.ask() == (1, 1, 0, []), "looking defines nothing"
    lab.qubes.call("admin.vm.Start", "", "one")
    assert lab.ask() == (2, 1, 1, ["one"]), "a start does, once"
    assert lab.qubes.get("one", "uuid").text == uuid
    lab.qubes.call("admin.vm.Kill", "", "one")
    lab.qubes.call("admin.vm.Remove", "", "one")
    assert lab.ask() == (2, 2, 1, [])
