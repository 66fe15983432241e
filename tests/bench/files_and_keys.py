"""``python -m tests.bench.files_and_keys``: file copy against tar, QubesDB against a ping-pong, within one run.

With ``--write`` the table goes to docs/reference/performance.md. Files lie in memory (/dev/shm), so that no disk is
measured. The copy is the whole way of a call between two programs: sender, a stream, the qube's side that runs the
receiver, receiver; what it is compared with are two programs and a pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from casemate.qdb.client import QubesDB
from tests.bench.figures import seconds, write
from tests.component.rig import SOURCE, Rig

ROOT = SOURCE.parent
SMALL, SMALL_SIZE, BIG = 10_000, 4096, 1 << 30
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{SOURCE}:{ROOT}"}


class Table:
    """Rows of Markdown, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def add(self, what: str, measured: str, limit: str, ratio: float, aim: str, met: bool, upstream: str = "") -> None:
        row = f"| {what} | {measured} | {limit} | {ratio:.2f} | {aim} | {'yes' if met else 'no'} | {upstream} |"
        self.rows.append(row)
        print(row, flush=True)


# -- files


@contextlib.contextmanager
def receiver(directory: Path) -> Iterator[dict[str, str]]:
    """A qube's side without a machine; gives the environment in which its callers run."""
    services = directory / "rpc"
    services.mkdir()
    service = services / "qubes.Filecopy"
    service.write_text(
        f"#!/bin/sh\nexec {sys.executable} -S -m casemate.agent.entry qfile-unpacker --max-files={2 * SMALL + 10}\n"
    )
    service.chmod(0o755)
    environment = {
        **ENVIRONMENT, "QREXEC_SERVICE_PATH": str(services), "HOME": str(directory / "home"),
        "QREXEC_AGENT_SOCKET": str(directory / "agent.sock"),
    }  # fmt: skip
    (directory / "home").mkdir()
    argv = [sys.executable, "-m", "tests.fakes.qube", str(directory / "link.sock"), str(directory / "agent.sock")]
    with subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield environment
        finally:
            process.kill()


def copied(directory: Path, environment: dict[str, str], what: Path) -> float:
    """Seconds of a copy by our tools."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-S", "-m", "casemate.agent.entry", "qvm-copy-to-vm", "target", what.name],
        env=environment, cwd=what.parent, check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    took = time.perf_counter() - begin
    arrived = directory / "home/QubesIncoming/work" / what.name
    assert arrived.exists()
    shutil.rmtree(arrived) if arrived.is_dir() else arrived.unlink()
    return took


def tarred(directory: Path, what: Path) -> float:
    """Seconds of a copy by two tars and a pipe."""
    target = directory / "tar"
    target.mkdir()
    begin = time.perf_counter()
    sender = subprocess.Popen(["tar", "c", what.name], cwd=what.parent, stdout=subprocess.PIPE)
    subprocess.run(["tar", "x"], cwd=target, stdin=sender.stdout, check=True)
    assert sender.stdout is not None
    sender.stdout.close()
    assert sender.wait() == 0
    took = time.perf_counter() - begin
    shutil.rmtree(target)
    return took


def files(table: Table, rounds: int) -> None:
    """One large file, and many small ones."""
    directory = Path(tempfile.mkdtemp(prefix="bench-files-", dir="/dev/shm"))
    try:
        many = directory / "many"
        many.mkdir()
        for number in range(SMALL):
            (many / f"file-{number}").write_bytes(os.urandom(SMALL_SIZE))
        big = directory / "big"
        with open(big, "wb") as file:
            block = os.urandom(1 << 20)
            for _ in range(BIG >> 20):
                file.write(block)
        with receiver(directory) as environment:
            for what, path, upstream in (
                ("1 GiB in one file", big, "0.25"),
                (f"{SMALL:,} files of 4 KiB", many, "0.51"),
            ):
                ours, theirs = [], []
                for _ in range(rounds):
                    ours.append(copied(directory, environment, path))
                    theirs.append(tarred(directory, path))
                a, b = statistics.median(ours), statistics.median(theirs)
                table.add(f"copy of {what}", seconds(a), f"tar to tar {seconds(b)}", b / a, "≥ 1.0", b >= a, upstream)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# -- keys

PING = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
print("ready", flush=True)
sock, _ = server.accept()
while data := sock.recv(4096):
    sock.sendall(data)
"""


def per_call(work: Callable[[], object], count: int = 3000) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - begin) / count


def keys(table: Table, rounds: int) -> None:
    """Reads and writes as programs of the host and of a qube make them."""
    directory = Path(tempfile.mkdtemp(prefix="bk"))
    made = Rig(directory)
    try:
        path = directory / "ping.sock"
        process = subprocess.Popen([sys.executable, "-c", PING, str(path)], stdout=subprocess.PIPE)
        made.processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        ping = socket.socket(socket.AF_UNIX)
        ping.connect(str(path))
        message = bytes(72)

        def pong() -> None:
            ping.sendall(message)
            ping.recv(4096)

        made.start_link(**{f"/k/{n}": "value" for n in range(50)})
        made.start_agent()
        assert made.call("no.Such")[0] == 127
        database = QubesDB(directory / "qubesdb.sock")
        watchers = [QubesDB(directory / "qubesdb.sock") for _ in range(50)]
        cases: list[tuple[str, Callable[[], object], str]] = [
            ("read, 50 keys", lambda: database.read("/k/49"), "1.75"),
            ("write", lambda: database.write("/status/x", b"value"), ""),
        ]
        for what, work, upstream in cases:
            measure(table, f"QubesDB {what}", work, pong, rounds, upstream)
        for n in range(950):
            database.write(f"/many/{n}", b"value")
        measure(table, "QubesDB read, 1,000 keys", lambda: database.read("/many/949"), pong, rounds, "")
        for watcher in watchers:
            watcher.watch("/other/")
        measure(table, "QubesDB write, 50 watchers of other keys", cases[1][1], pong, rounds, "20 at 100 watchers")
        for watcher in watchers:
            watcher.close()
        ping.close()
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


def measure(
    table: Table, what: str, work: Callable[[], object], pong: Callable[[], object], rounds: int, upstream: str
) -> None:
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(per_call(work))
        theirs.append(per_call(pong))
    a, b = statistics.median(ours), statistics.median(theirs)
    table.add(what, seconds(a), f"ping-pong {seconds(b)}", a / b, "≤ 3", a <= 3 * b, upstream)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 also when an aim is missed: the table says so."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.files_and_keys", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/performance.md")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    table, load = Table(), os.getloadavg()[0]
    keys(table, args.rounds)
    files(table, args.rounds)
    if args.write:
        text = "\n".join(
            [
                f"`python -m tests.bench.files_and_keys --write`, {os.cpu_count()} processors, load average {load:.1f} "
                f"at the beginning; medians of {args.rounds}, both sides in turn. Upstream's ratio is that of its "
                "programs, measured elsewhere.",
                "",
                "| What | Casemate | Beside it | Ratio | Aim | Met | Upstream's ratio |",
                "|---|---|---|---|---|---|---|",
                *table.rows,
            ]
        )
        write("bench files and keys", "Files and keys", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
