"""Law 6 on Windows: CPython for Windows, LockFileEx and the real store, run by Wine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.store.store import Store
from tests.builders import small_system
from tests.wine import WINE, end_server, environment

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".windows" / "python.exe"

pytestmark = [
    pytest.mark.skipif(WINE is None or not PYTHON.exists(), reason="needs `make test-windows`, which sets Wine up"),
    pytest.mark.timeout(600),
]

BUSY = 75


class Windows:
    """Runs ``python -m casemate.store`` of Windows on a store in a directory of this host."""

    def __init__(self, prefix: Path, store: Path) -> None:
        self.store = store
        self.environment = environment(prefix) | {"WINEDLLOVERRIDES": "mscoree,mshtml=d"}

    def start(self, *words: str, timeout: float = 60) -> subprocess.Popen[str]:
        """A process of Windows. All three streams are pipes: its Python does not start with other handles here."""
        file = "Z:" + str(self.store).replace("/", "\\")
        return subprocess.Popen(
            [str(WINE), str(PYTHON), "-m", "casemate.store", "--timeout", str(timeout), file, *words],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, timeout: float = 60) -> tuple[int, str]:
        """The status and output of a process that ended."""
        process = self.start(*words, timeout=timeout)
        out, err = process.communicate(timeout=300)
        return process.returncode, out + err


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Wine's own directory; its server ends with the tests."""
    path = tmp_path_factory.mktemp("wine")
    yield path
    end_server(path)


@pytest.fixture
def windows(prefix: Path, tmp_path: Path) -> Windows:
    """A store with a few qubes, made on this host."""
    path = tmp_path / "qubes.xml"
    Store(path).begin_with(small_system())
    made = Windows(prefix, path)
    status, said = made.run("check")
    assert status == 0 and "sound; 6 qubes" in said, said
    return made


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_no_acknowledged_change_is_lost(windows: Windows) -> None:
    writers = [windows.start("increment", "n", "--times", "50") for _ in range(4)]
    acknowledged = 0
    for writer in writers:
        out, err = writer.communicate(timeout=500)
        assert writer.returncode == 0, err
        acknowledged += len(out.split())
    features = Store(windows.store).snapshot().admin.features
    assert (acknowledged, features["n"], features["n.twin"]) == (200, "200", "200")


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process of Windows; Wine runs it in the process that we started.

    The end of its output is not waited for: servants of Wine that it started have inherited the pipes and live on.
    """
    process.kill()
    process.wait(timeout=60)
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def test_a_killed_holder_leaves_no_lock(windows: Windows) -> None:
    holder = windows.start("save-many", "n", "--saves", "3", "--pause", "100")
    assert line(holder) == "saved"
    assert windows.run("increment", "n", timeout=0.5)[0] == BUSY
    end(holder)
    assert windows.run("increment", "n", timeout=20)[0] == 0


def test_readers_are_in_together_and_keep_a_writer_out(windows: Windows) -> None:
    """They hold the lock by the clock: under Wine 8 a process sometimes misses the end of its standard input."""
    readers = [windows.start("read", "n", "--seconds", "100") for _ in range(3)]
    assert [line(reader) for reader in readers] == ["n="] * 3
    assert windows.run("increment", "n", timeout=0.5)[0] == BUSY
    for reader in readers:
        end(reader)
    assert windows.run("increment", "n", timeout=20)[0] == 0


def test_a_writer_is_not_starved_by_readers(windows: Windows) -> None:
    """Four readers overlap all the time. Without the gate a writer gets in only when they end."""
    readers = [windows.start("loop", "n", "--seconds", "20", "--hold", "0.02") for _ in range(4)]
    assert [line(reader) for reader in readers] == ["reading"] * 4
    writer = windows.start("increment", "n", "--times", "10")
    out, _err = writer.communicate(timeout=200)
    assert len(out.split()) == 10
    assert all(reader.poll() is None for reader in readers), "the writer came only after the readers"
    for reader in readers:
        out, _err = reader.communicate(timeout=100)
        assert re.search(r"torn=0$", out.strip()), out
