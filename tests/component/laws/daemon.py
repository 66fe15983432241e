"""A running lab.py, and programs beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from tests.builders import settings_in

ROOT = Path(__file__).parents[3]


class Lab:
    """The daemon of lab.py and programs that use it."""

    def __init__(self, directory: Path) -> None:
        self.settings = settings_in(directory, prefix=f"lab-{os.getpid()}-")
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
