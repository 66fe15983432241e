"""Rows of ``tests.bench.backup`` for incremental backups: the first, 1 % changed, unchanged; each by the job itself."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from casemate.backup.incremental.layer import CLUSTER
from casemate.backup.incremental.repository import Repository
from casemate.engine.backup_jobs import INCREMENTAL, BackupJob
from casemate.host.process import Runner
from casemate.storage.nbd_export import EXPORT, nbd_export
from casemate.storage.saved_state import changed_layers, identity

PASSPHRASE = b"pass"


def layers(path: Path) -> list[Path]:
    """The files of an image, uppermost first, as this bench names them."""
    number = int(path.suffix[1:])
    return [path.with_suffix(f".{one}") for one in range(number, -1, -1)]


class Bench:
    """One volume in layers, and one repository."""

    def __init__(self, directory: Path, image: Path) -> None:
        self.directory = directory
        self.top = directory / "layer.0"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, self.top], check=True)
        self.size = image.stat().st_size
        self.repository = directory / "repository"
        Repository(self.repository, PASSPHRASE, directory / "state").borg.init()

    def change(self, clusters: list[int]) -> None:
        """A run of a machine that writes whole clusters."""
        fresh = self.top.with_suffix(f".{int(self.top.suffix[1:]) + 1}")
        made = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.top, "-F", "qcow2", fresh]
        subprocess.run(made, check=True)
        commands = "".join(f"write -P {1 + one % 255} {one * CLUSTER} {CLUSTER}\n" for one in clusters)
        subprocess.run(
            ["qemu-io", "-f", "qcow2", fresh], input=commands.encode(), check=True, stdout=subprocess.DEVNULL
        )
        self.top = fresh

    def backup(self) -> tuple[float, float]:
        """Make a backup: seconds on the clock, and the most memory of the job with its borg, in MiB."""
        with watched() as memory:
            begin = time.perf_counter()
            asyncio.run(self._backup())
            wall = time.perf_counter() - begin
        return wall, memory[0]

    async def _backup(self) -> None:
        @asynccontextmanager
        async def serve(said: dict[str, Any]) -> AsyncIterator[dict[str, object]]:
            content = [identity(one) for one in layers(self.top)]
            changed = changed_layers(content, said["since"])
            answer: dict[str, object] = {
                "address": str(self.directory / "nbd"), "export": EXPORT, "size": self.size, "content": content,
                "changed": changed,
            }  # fmt: skip
            if changed == 0:
                yield answer
                return
            async with nbd_export(Runner(), self.top, "qcow2", None, self.directory / "nbd"):
                yield answer

        order: dict[str, object] = {
            "passphrase": base64.b64encode(PASSPHRASE).decode(), "store": "", "qubes": 1, "keep": {},
            "files": [{"name": "vm1/private.img", "volume": "one/private"}],
            "repository": str(self.repository), "state": str(self.directory / "state"),
        }  # fmt: skip
        await BackupJob(Runner(), INCREMENTAL).run(order, serve, lambda _count: None)


class watched:  # noqa: N801  # read as a word: with watched() as memory
    """The most memory (MiB, resident) that a job and its borg had together, looked at twenty times a second."""

    def __enter__(self) -> list[float]:
        self._most = [0.0]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self._most

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            total = 0
            for job in _children(os.getpid()):
                if b"incremental.job" in _text(job, "cmdline"):
                    total += _resident(job) + sum(map(_resident, _children(job)))
            self._most[0] = max(self._most[0], total * os.sysconf("SC_PAGE_SIZE") / (1 << 20))


def _children(pid: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        if b"\nPPid:\t%d\n" % pid in _text(int(path.name), "status"):
            yield int(path.name)


def _text(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _resident(pid: int) -> int:
    return int((_text(pid, "statm").split() or [b"0", b"0"])[1])


def rows(directory: Path, image: Path) -> list[str]:
    """The rows; every ratio is to the first backup of the same run."""
    bench = Bench(directory, image)
    count = bench.size // CLUSTER
    data = [one for one in range(count) if (one * CLUSTER // (16 << 20)) % 2 == 0]
    share = len(data) // 100
    first, memory = bench.backup()
    found = [f"| first | {first:.1f} s | 1 | | {memory:.0f} MiB |"]
    for what, clusters, aim in (
        ("1 % changed, scattered", random.Random(1).sample(data, share), "≤ 0.1"),
        ("1 % changed, in one place", data[:share], "≤ 0.1"),
        ("unchanged", [], "≤ 0.02"),
    ):
        if clusters:
            bench.change(sorted(clusters))
        wall, memory = bench.backup()
        found.append(f"| {what} | {wall:.2f} s | {wall / first:.3f} | {aim} | {memory:.0f} MiB |")
    for row in found:
        print(row, file=sys.stdout, flush=True)
    return found
