"""Law 6: shared and exclusive locks of the system, on files that are never replaced; told by processes and threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from casemate.store.lock import FileLock
from casemate.store.store import Store
from casemate.wire.errors import LockTimeoutError
from tests.component.laws.processes import BUSY, counters, finish, line, run, scaled, spawn


def test_t01_nothing_acknowledged_is_lost(path: Path) -> None:
    """The lock is taken on what everybody else locks too, also after the file was replaced while one waited."""
    times = scaled(25, 250)
    writers = [spawn(path, "increment", "n", "--times", str(times)) for _ in range(6)]
    acknowledged = sum(len(finish(writer)) for writer in writers)
    assert acknowledged == 6 * times and counters(path, "n") == (acknowledged, acknowledged)


def test_t05_readers_are_in_together(path: Path) -> None:
    readers = [spawn(path, "hold", "shared") for _ in range(8)]
    for reader in readers:
        assert line(reader) == "held"  # each while all before it still hold
    for reader in readers:
        finish(reader)


@pytest.mark.parametrize(("first", "second"), [("shared", "increment"), ("exclusive", "read"),
                                               ("exclusive", "increment")])  # fmt: skip
def test_t06_reader_and_writer_wait_for_each_other(path: Path, first: str, second: str) -> None:
    holder = spawn(path, "hold", first)
    assert line(holder) == "held"
    assert run(path, second, "n", timeout=0.3).returncode == BUSY
    waiting = spawn(path, second, "n")
    finish(holder)
    finish(waiting)


def test_t07_a_writer_is_not_starved_by_readers(path: Path) -> None:
    """Readers that overlap all the time: without the gate the writer gets in when they end, which is after 100 s."""
    readers = [spawn(path, "loop", "n", "--seconds", "100", "--hold", "0.02") for _ in range(6)]
    for reader in readers:
        assert line(reader) == "reading"
    store = Store(path)
    waits = []
    for _ in range(10):
        begin = time.monotonic()
        with store.write(50):
            waits.append(time.monotonic() - begin)
    for reader in readers:
        reader.kill()
        reader.communicate()
    assert max(waits) < 20, waits


def test_t07_readers_are_not_starved_by_writers(path: Path) -> None:
    writers = [spawn(path, "increment", "n", "--times", "1000000") for _ in range(3)]
    for writer in writers:
        assert int(line(writer)) > 0
    store, waits = Store(path), []
    for _ in range(5):
        begin = time.monotonic()
        with store.read(50):
            waits.append(time.monotonic() - begin)
    for writer in writers:
        writer.kill()
        writer.communicate()
    assert max(waits) < 20, waits


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_t08_a_timeout_is_kept_and_names_the_holder(path: Path, mode: str) -> None:
    holder = spawn(path, "hold", mode)
    assert line(holder) == "held"
    begin = time.monotonic()
    with pytest.raises(LockTimeoutError) as caught, Store(path).write(0.5):
        raise AssertionError("two are in")
    assert 0.4 < time.monotonic() - begin < 20
    assert f"process {holder.pid} (" in str(caught.value) and "casemate.store" in str(caught.value)
    finish(holder)
    assert run(path, "increment", "n", timeout=1).returncode == 0, "the one that gave up left a lock"


def test_t10_other_descriptors_of_the_file_do_not_matter(path: Path) -> None:
    holder = spawn(path, "hold", "exclusive", "--open")
    assert line(holder) == "held"
    assert line(holder) == "opened"  # and closed: a lock of lockf(3) would be gone now
    assert run(path, "increment", "n", timeout=0.3).returncode == BUSY
    finish(holder)


def test_t11_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    """Also not when the holder is killed and has no chance to give it back."""
    holder = spawn(path, "hold", "exclusive", "--fork", "60")
    assert line(holder) == "held"
    child = int(line(holder))
    holder.kill()
    holder.wait()
    assert Path(f"/proc/{child}").exists()
    assert run(path, "increment", "n", timeout=2).returncode == 0
    os.kill(child, signal.SIGKILL)
    holder.communicate()


def test_t11_a_program_started_under_the_lock_does_not_keep_it(path: Path) -> None:
    holder = spawn(path, "hold", "exclusive", "--child", "sleep", "20")
    assert line(holder) == "held"
    child = int(line(holder))
    names = {os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")}
    assert not [name for name in names if "qubes.xml" in name]
    holder.kill()
    holder.wait()
    assert run(path, "increment", "n", timeout=2).returncode == 0
    os.kill(child, signal.SIGKILL)
    holder.communicate()


def test_t15_threads_of_one_process_exclude_each_other(path: Path) -> None:
    store, inside, most = Store(path), [], []
    lock = FileLock(path)

    def work() -> None:
        for _ in range(30):
            with store.write() as transaction:
                inside.append(1)
                most.append(len(inside))
                features = transaction.system.admin.features
                features["n"] = str(int(features.get("n", "0")) + 1)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and store.snapshot().admin.features["n"] == "180"
    together = threading.Barrier(3, timeout=10)

    def read() -> None:
        with lock.shared():
            together.wait()  # all three are in at the same time, or this breaks

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not together.broken
    lock.close()


def test_t17_a_stopped_holder_that_is_killed_frees_the_lock(path: Path) -> None:
    holder = spawn(path, "hold", "exclusive")
    assert line(holder) == "held"
    holder.send_signal(signal.SIGSTOP)
    assert run(path, "increment", "n", timeout=0.3).returncode == BUSY
    waiting = spawn(path, "increment", "n")
    holder.kill()
    begin = time.monotonic()
    finish(waiting)
    assert time.monotonic() - begin < 5
    holder.communicate()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_lock_file_that_goes_away_is_made_again_and_locks(path: Path, how: str) -> None:
    store = Store(path)
    with store.write() as transaction:
        transaction.system.admin.features["a"] = "1"
    for name in ("qubes.xml.lock", "qubes.xml.lock.gate"):
        path.with_name(name).unlink()
        if how == "replaced":
            path.with_name(name).touch(mode=0o660)
    holder = spawn(path, "hold", "exclusive")
    assert line(holder) == "held"
    with pytest.raises(LockTimeoutError), store.write(0.2):
        raise AssertionError("a lock of a file that is gone was taken for one")
    finish(holder)
    with store.write(2) as transaction:
        transaction.system.admin.features["a"] = "2"


def test_what_is_left_by_a_killed_waiter_costs_nobody_the_lock(path: Path) -> None:
    """A waiter that dies leaves its word in the gate's byte; the next one goes the long way and takes it back."""
    holder = spawn(path, "hold", "exclusive")
    assert line(holder) == "held"
    waiter = spawn(path, "increment", "n")
    gate = path.with_name("qubes.xml.lock.gate")
    end = time.monotonic() + 20
    while gate.read_bytes() != b"\x01":
        assert time.monotonic() < end
        time.sleep(0.01)
    waiter.kill()
    waiter.communicate()
    finish(holder)
    assert gate.read_bytes() == b"\x01"
    assert run(path, "increment", "n", timeout=2).returncode == 0
    assert gate.read_bytes() == b"\x00"
