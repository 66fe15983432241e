"""The database tools of a guest, on a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.qdb.client import QubesDB
from casemate.wire import qfile
from tests.component.served_database import served_database

Run = Callable[..., tuple[int, bytes, bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Socket of a database."""
    path = tmp_path / "qubesdb.sock"
    with served_database(path, {"/name": b"work", "/a/x": b"1\n\xff", "/a/y": b""}):
        yield path


@pytest.fixture
def run(path: Path) -> Run:
    def run(tool: str, *words: str) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "casemate.agent.entry", f"qubesdb-{tool}", *words],
            env={**os.environ, "QUBESDB_SOCKET": str(path)}, capture_output=True, timeout=30,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


def test_read(run: Run) -> None:
    assert run("read", "/name") == (0, b"work\n", b"")
    assert run("read", "/a/x", "/name") == (0, b"1\\x0a\\xff\nwork\n", b"")
    assert run("read", "-r", "/a/x") == (0, b"1\n\xff\n", b"")
    assert run("read", "-f", "/name") == (0, b"/name = work\n", b"")
    assert run("read", "/none")[:2] == (2, b"") and b"/none" in run("read", "/none")[2]
    assert run("read", "-q", "/none", "/name") == (2, b"work\n", b"")
    assert run("read", "-e", "other", "/none") == (0, b"other\n", b"")
    assert run("read", "bad path")[0] == 1
    assert run("read")[0] == 1
    assert run("read", "-z", "/name")[0] == 1


def test_write_and_remove(run: Run) -> None:
    assert run("write", "/b/x", "1", "/b/y", "2") == (0, b"", b"")
    assert run("list", "/b/") == (0, b"x\ny\n", b"")
    assert run("list", "-f", "/b/") == (0, b"/b/x\n/b/y\n", b"")
    assert run("multiread", "/b/") == (0, b"x = 1\ny = 2\n", b"")
    assert run("multiread", "-f", "/b/x") == (0, b"/b/x = 1\n", b"")
    assert run("read", "-x", "/b/x") == (0, b"1\n", b"")
    assert run("read", "-q", "/b/x")[0] == 2
    assert run("rm", "/b/") == (0, b"", b"")
    assert run("rm", "/b/")[0] == 2
    assert run("write", "/b")[0] == 1
    assert run("write", "/b/", "x")[0] == 1
    assert run("list", "/a", "/b")[0] == 1


def test_watch_and_wait(run: Run, path: Path) -> None:
    results = dict[str, tuple[int, bytes, bytes]]()

    def start(name: str, *words: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: results.__setitem__(name, run(*words)))
        thread.start()
        return thread

    threads = [start("watch", "watch", "-n", "2", "/w/"), start("wait", "read", "-w", "/late")]
    with QubesDB(path) as db:
        while any(thread.is_alive() for thread in threads):
            db.write("/w/x", b"")
            db.write("/late", b"now")
            threads[0].join(0.05)
    assert results["watch"] == (0, b"/w/x\n/w/x\n", b"")
    assert results["wait"] == (0, b"now\n", b"")


def test_no_database(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "casemate.agent.entry", "qubesdb-read", "/name"],
        env={**os.environ, "QUBESDB_SOCKET": str(tmp_path / "none")}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1 and b"cannot be reached" in done.stderr


def test_limits_of_copies_come_from_the_database(path: Path, tmp_path: Path) -> None:
    """What the host has set by features; one that is no number refuses all, because it was meant to limit something."""
    stream = qfile.build_header(b"f", 0o100644, 2, 0, 0) + b"xx" + qfile.END
    for value, code in ((b"1", qfile.EDQUOT), (b"2", 0), (b"lots", qfile.EINVAL)):
        with QubesDB(path) as database:
            database.write("/vm-config/filecopy-max-bytes", value)
        env = {**os.environ, "QUBESDB_SOCKET": str(path), "HOME": str(tmp_path), "QREXEC_REMOTE_DOMAIN": "other"}
        argv = [sys.executable, "-m", "casemate.agent.entry", "qfile-unpacker"]
        done = subprocess.run(argv, env=env, input=stream, capture_output=True, timeout=30)
        assert done.returncode == code, done.stderr
        assert (b"filecopy-max-bytes" in done.stderr) == bool(code)
