"""``python -m tests.bench.backup``: writing and reading a backup beside tar, zstd and openssl, within one run.

The image is 2 GiB, half of it random data, half holes, 16 MiB each by turns. With ``--write`` the table goes to
docs/reference/performance.md. What counts is processor time: the machine may be shared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import backup_incremental, figures

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SIZE, PIECE = 2 << 30, 16 * MIB
DATA = SIZE // 2
UPSTREAM = {"write": DATA / MIB / 54.2, "read": DATA / MIB / 53.5}
"""MiB for each second of processor time of upstream's own programs, without compression, with keys at N=2^20."""

WRITE = """
import os, sys
from casemate.backup.container import Cost
from casemate.backup.tar_writer import FileContent
from casemate.backup.writer import File, Writer
image, target, packed = sys.argv[1:4]
fd = os.open(image, os.O_RDONLY)
size = os.fstat(fd).st_size
store = f'''<qubes><domains><domain id="domain-1" class="AppVM">
<properties><property name="name">work</property><property name="template">deb</property></properties>
<features><feature name="backup-content">1</feature><feature name="backup-path">vm1/</feature></features>
<volume-config><volume name="private" save_on_stop="True" size="{size}"/></volume-config>
</domain></domains></qubes>'''.encode()
with open(target, "wb", buffering=0) as out:
    writer = Writer(out, b"pass", packed)
    writer.run(store, [File("vm1/private.img", lambda: (FileContent(fd), lambda: None), large=True)])
    writer.close()
"""
READ = """
import sys
from casemate.backup.outer import members
from casemate.backup.reader import Backup, Nothing
with open(sys.argv[1], "rb") as file:
    backup = Backup(members(file), b"pass")
    report = backup.run(Nothing())
    backup.close()
    assert report.whole, report
"""


class Measured:
    """Seconds on the clock, seconds of processors, most memory in MiB of one process."""

    def __init__(self, wall: float, cpu: float, memory: float) -> None:
        self.wall, self.cpu, self.memory = wall, cpu, memory

    @property
    def rate(self) -> float:
        """MiB of data for each second of processor time."""
        return DATA / MIB / self.cpu


def measure(argv: Sequence[str]) -> Measured:
    """Run a program, or by a shell a pipe of them, to its end."""
    begin = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, {**os.environ, "PYTHONPATH": str(ROOT / "src")})
    _pid, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{argv[0]} ended with {status}")
    return Measured(time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def best(argv: Sequence[str], rounds: int) -> Measured:
    """That of the least processor time."""
    return min((measure(argv) for _ in range(rounds)), key=lambda one: one.cpu)


def image(path: Path) -> None:
    """The image to be backed up."""
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for at in range(0, SIZE, 2 * PIECE):
            file.seek(at)
            file.write(os.urandom(PIECE))


def table(directory: Path, rounds: int) -> list[str]:
    """The rows."""
    source, ours, pipe = directory / "image", directory / "backup", directory / "pipe"
    image(source)
    secret = "-aes-256-ctr -pbkdf2 -pass pass:x"
    write_pipe = f"tar --sparse -cf - -C {directory} image | zstd -3 -q | openssl enc {secret} >{pipe}"
    read_pipe = f"openssl enc -d {secret} <{pipe} | zstd -dc -q | tar -xf - -O >/dev/null"
    rows = []
    for what, work, packed in (("write", WRITE, "zstd"), ("write", WRITE, ""), ("read", READ, "")):
        words = [sys.executable, "-c", work, *([str(source), str(ours), packed] if what == "write" else [str(ours)])]
        pipe_of = write_pipe if what == "write" else read_pipe
        mine = best(words, rounds)
        limit = best(["/bin/sh", "-c", pipe_of], rounds)
        upstream = mine.rate / UPSTREAM[what]
        busy = mine.cpu / mine.wall / (os.cpu_count() or 1)
        rows.append(
            f"| {what}, {'zstd' if packed else 'not compressed'} | {mine.rate:.0f} MiB | {limit.rate:.0f} MiB | "
            f"{mine.rate / limit.rate:.2f} | ≥ 0.5 | {upstream:.1f} | {mine.wall:.1f} s, {busy:.2f} of processors | "
            f"{mine.memory:.0f} MiB |"
        )
        print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 also when an aim is missed: the table says so."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.backup", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/performance.md")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    directory = Path(tempfile.mkdtemp(prefix="bench-backup-"))
    try:
        rows = table(directory, args.rounds)
        incremental = backup_incremental.rows(directory, directory / "image")
    finally:
        shutil.rmtree(directory)
    if args.write:
        figures.write("bench backup", "Backups", "\n".join([
            f"`python -m tests.bench.backup --write`. {figures.host()}. An image of 2 GiB, half random data, half "
            f"holes; the best of {args.rounds}. Rates are MiB of data for each second of processor time; keys are "
            "derived with N = 2^17. Beside it `tar --sparse | zstd -3 | openssl enc` and the way back. The column "
            "of Qubes OS is our rate over that of its own programs, which derive each key with N = 2^20 and write "
            "temporary files. Memory is with that of scrypt, 128 MiB for each of two keys at once.",
            "",
            "| What | Casemate | tar, zstd, openssl | Ratio | Aim | Qubes OS | On the clock | Memory |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "Incremental backups of the same image, in layers as qubes have it, by the process that makes them, with "
            "borg. Times are on the clock, ratios to the first backup of the same run. Memory is the most that the "
            "process and its borg had together.",
            "",
            "| Backup | Time | Of the first | Aim | Memory |",
            "|---|---|---|---|---|",
            *incremental,
        ]))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
