"""The store driven from outside, by a program that anybody could write: one process per reader and writer.

``CASEMATE_STORE_PROGRAM`` points the tests at another implementation: a command that takes the arguments of
``python -m casemate.store``. ``CASEMATE_FULL=1`` runs every test with the numbers of the acceptance list.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

PROGRAM = shlex.split(os.environ.get("CASEMATE_STORE_PROGRAM", "")) or [sys.executable, "-m", "casemate.store"]
FULL = os.environ.get("CASEMATE_FULL", "") not in ("", "0")
BUSY = 75


def scaled(usual: int, full: int) -> int:
    """How often to do something: in every run, and when all of it was asked for."""
    return full if FULL else usual


def command(path: Path, *words: str, timeout: float = 30) -> list[str]:
    """The command line of the store's program."""
    return [*PROGRAM, "--timeout", str(timeout), str(path), *words]


def spawn(path: Path, *words: str, timeout: float = 30, **environment: str) -> subprocess.Popen[bytes]:
    """Start it, its streams in our hands."""
    return subprocess.Popen(
        command(path, *words, timeout=timeout),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        bufsize=0,  # a line that was read ahead would be lost to communicate()
        env={**os.environ, **environment},
    )  # fmt: skip


def run(path: Path, *words: str, timeout: float = 30, within: float = 60) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return subprocess.run(command(path, *words, timeout=timeout), capture_output=True, timeout=within)


def line(process: subprocess.Popen[bytes]) -> str:
    """The next line that it says; empty at its end."""
    assert process.stdout is not None
    return process.stdout.readline().decode().rstrip("\n")


def finish(process: subprocess.Popen[bytes], status: int | None = 0) -> list[str]:
    """End its input, wait for its end; what it said."""
    out, err = process.communicate(timeout=120)
    assert status is None or process.returncode == status, err.decode()
    return out.decode().split("\n")[:-1]


def features(path: Path) -> dict[str, str]:
    """Features of the admin qube, as another process reads them."""
    done = run(path, "read")
    assert done.returncode == 0, done.stderr
    return dict(word.split("=", 1) for word in done.stdout.decode().splitlines())


def counters(path: Path, name: str) -> tuple[int, int]:
    """A counter and its twin."""
    found = features(path)
    return int(found.get(name, "0")), int(found.get(f"{name}.twin", "0"))
