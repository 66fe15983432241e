"""The store from outside: real processes, real signals; nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from casemate.model.changes import Change, FeatureSet
from casemate.store.lock import FileLock
from casemate.store.store import Store
from casemate.wire.errors import InUseError, LockTimeoutError, StoreError
from tests.builders import uuid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qubes.xml"


def command(path: Path, *words: str, timeout: float = 30) -> list[str]:
    return [sys.executable, "-m", "casemate.store", "--timeout", str(timeout), str(path), *words]


def spawn(path: Path, *words: str, timeout: float = 30) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(path, *words, timeout=timeout),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # a line that was read ahead would be lost to communicate()
    )


def feature(path: Path, name: str) -> int:
    return int(Store(path).snapshot().admin.features.get(name, "0"))


def wait_for_line(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == line + b"\n"


def test_first_use_makes_an_initial_system(path: Path) -> None:
    system = Store(path).snapshot()
    assert list(system.domains) == ["dom0"] and system.pool("default").driver == "qcow2" and len(system.labels) == 8
    assert path.stat().st_mode & 0o777 == 0o600
    path.with_name("qubes.xml.1").write_text("a previous one")
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        Store(path).snapshot()


def test_a_failed_block_leaves_nothing(path: Path) -> None:
    store = Store(path)
    with store.write() as transaction:
        transaction.system.add("TemplateVM", "deb", uuid=uuid(1))
        transaction.system.add("AppVM", "work", uuid=uuid(2), template="deb")
    before, system = path.read_bytes(), store.snapshot()
    heard: list[Change] = []
    store.subscribe(heard.extend)
    with pytest.raises(ZeroDivisionError), store.write() as transaction:
        transaction.system.domains["work"].memory = 999
        raise ZeroDivisionError
    with pytest.raises(InUseError), store.write() as transaction:
        transaction.system.remove("deb")
    assert path.read_bytes() == before and store.snapshot() is system and not heard
    with store.write() as transaction:
        transaction.system.domains["work"].features["a"] = "b"
    assert heard == [FeatureSet("work", "a", "b", None)]
    assert path.with_name("qubes.xml.1").read_bytes() == before


def test_a_snapshot_is_cached_until_the_file_changes(path: Path) -> None:
    store, other = Store(path), Store(path)
    first = store.snapshot()
    assert store.snapshot() is first
    with other.write() as transaction:
        transaction.system.admin.features["a"] = "b"
    assert store.snapshot() is not first and store.snapshot().admin.features["a"] == "b"
    for one in (store, other):  # who reads the file, and who has just written it
        with pytest.raises(RuntimeError):
            one.snapshot().admin.features.set("a", "c")


def test_processes_lose_no_update(path: Path) -> None:
    Store(path).snapshot()
    workers = [spawn(path, "increment", "n", "--times", "20") for _ in range(4)]
    acknowledged = 0
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
        acknowledged += len(out.splitlines())
    assert acknowledged == 80 == feature(path, "n") == feature(path, "n.twin")


def test_killed_processes_leave_a_whole_store(path: Path) -> None:
    Store(path).snapshot()
    acknowledged = killed = 0
    dice = random.Random(7)
    for _ in range(4):
        workers = [spawn(path, "increment", "n", "--times", "100000") for _ in range(2)]
        for worker in workers:
            assert worker.stdout is not None
            acknowledged += bool(worker.stdout.readline())
        time.sleep(dice.uniform(0, 0.08))  # the moment of the kill is what varies
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
        for worker in workers:
            out, _ = worker.communicate(timeout=30)
            acknowledged += out.count(b"\n")
            killed += 1
    stored = feature(path, "n")
    assert acknowledged <= stored <= acknowledged + killed and stored == feature(path, "n.twin")
    started = time.monotonic()
    with Store(path).write() as transaction:
        transaction.system.admin.features["after"] = "1"
    assert time.monotonic() - started < 20  # a lock that was left would be waited for 60 s
    assert not list(path.parent.glob(".*tmp*"))


def test_two_saves_under_one_lock_are_not_interrupted(path: Path) -> None:
    Store(path).snapshot()
    twice = spawn(path, "save-twice", "n", "--wait")
    wait_for_line(twice, b"saved")
    other = subprocess.run(command(path, "increment", "n", timeout=0.3), capture_output=True)
    assert other.returncode == 75 and feature(path, "n") == 1 and feature(path, "n.twin") == 0
    twice.communicate(timeout=30)
    assert twice.returncode == 0 and feature(path, "n") == feature(path, "n.twin") == 1


def test_a_timeout_names_the_holder(path: Path) -> None:
    Store(path).snapshot()
    for mode in ("shared", "exclusive"):
        holder = spawn(path, "hold", mode)
        wait_for_line(holder, b"held")
        started = time.monotonic()
        with pytest.raises(LockTimeoutError) as caught, Store(path).write(0.3):
            raise AssertionError("the lock was not exclusive")
        assert 0.25 < time.monotonic() - started < 20
        assert str(holder.pid) in str(caught.value) and "casemate.store" in str(caught.value)
        holder.communicate(timeout=30)
        with Store(path).write(5) as transaction:
            transaction.system.admin.features["free"] = mode


def test_readers_share_and_exclude_a_writer(path: Path) -> None:
    Store(path).snapshot()
    readers = [spawn(path, "hold", "shared") for _ in range(3)]
    for process in readers:
        wait_for_line(process, b"held")
    with pytest.raises(LockTimeoutError), Store(path).write(0.2):
        raise AssertionError("a writer beside readers")
    for process in readers:
        process.communicate(timeout=30)


def test_readers_do_not_starve_a_writer(path: Path) -> None:
    Store(path).snapshot()
    stop = threading.Event()
    rounds = [0] * 4

    def read_on(index: int) -> None:
        lock = FileLock(path)  # an open file of its own: to flock, another process
        while not stop.is_set():
            with lock.shared():
                rounds[index] += 1
                time.sleep(0.01)
        lock.close()

    threads = [threading.Thread(target=read_on, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    try:
        while not all(rounds):
            time.sleep(0.001)
        started = time.monotonic()
        with Store(path).write(20):
            waited = time.monotonic() - started
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert waited < 2


def test_threads_exclude_each_other_and_nothing_is_reentrant(path: Path) -> None:
    store = Store(path)
    store.snapshot()
    inside, refused = threading.Event(), []

    def other() -> None:
        inside.wait()
        try:
            with store.write(0.1):
                refused.append(False)
        except LockTimeoutError as error:
            refused.append(f"process {os.getpid()}" in str(error))

    thread = threading.Thread(target=other, daemon=True)  # waits for ever when this test fails before its turn
    thread.start()
    with store.write():
        with pytest.raises(StoreError, match="already"), store.write(1):
            raise AssertionError("entered twice")
        inside.set()
        thread.join()
    assert refused == [True]


def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    Store(path).snapshot()
    held_read, held_write = os.pipe()
    go_read, go_write = os.pipe()
    lock = FileLock(path)
    with lock.exclusive():
        child = os.fork()
        if child == 0:
            os.close(go_write)
            os.write(held_write, b"x")
            os.read(go_read, 1)  # outlives the parent's lock
            os._exit(0)
        os.read(held_read, 1)
    with Store(path).write(1) as transaction:
        transaction.system.admin.features["free"] = "1"
    os.close(go_write)
    assert os.waitpid(child, 0)[1] == 0
    for fd in (held_read, held_write, go_read):
        os.close(fd)
    lock.close()


def test_the_lock_survives_use_of_the_data_file(path: Path) -> None:
    store = Store(path)
    with store.write():
        path.read_bytes()
        with pytest.raises(LockTimeoutError), Store(path).write(0.1):
            raise AssertionError("the lock was lost")


def test_a_file_changed_behind_our_back_is_not_overwritten(path: Path) -> None:
    store = Store(path)
    original = (store.snapshot(), path.read_bytes())[1]
    with pytest.raises(StoreError, match="ignores its lock"), store.write() as transaction:
        foreign = path.with_name("foreign")
        foreign.write_bytes(original.replace(b"red", b"rot"))
        foreign.rename(path)
        transaction.system.admin.features["a"] = "b"
    assert b"rot" in path.read_bytes() and "rot" in store.snapshot().labels
    assert not list(path.parent.glob(".*tmp*"))


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    store = Store(path)
    store.snapshot()
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(StoreError, match="not saved"), store.write() as transaction:
            transaction.system.admin.features["a"] = "b"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and not list(path.parent.glob(".*tmp*"))
    assert "a" not in store.snapshot().admin.features
    with store.write(1) as transaction:
        transaction.system.admin.features["a"] = "c"


def test_order_of_system_calls(tmp_path: Path) -> None:
    path = tmp_path / "qubes.xml"
    Store(path).snapshot()
    trace = tmp_path / "trace"
    try:
        traced = subprocess.run(
            ["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2,write", "-o", str(trace),
             *command(path, "set", "a", "b")],
            capture_output=True, timeout=60,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if traced.returncode != 0 and b"ptrace" in traced.stderr:
        pytest.skip("tracing is not allowed here")
    assert traced.returncode == 0
    lines = trace.read_text().splitlines()
    steps = [
        next(i for i, line in enumerate(lines) if "fsync(" in line and ".tmp-" in line),
        next(i for i, line in enumerate(lines) if "rename" in line and '/qubes.xml") = 0' in line),
        next(i for i, line in enumerate(lines) if "fsync(" in line and f"<{tmp_path}>" in line),
        next(i for i, line in enumerate(lines) if "write(1" in line),
    ]  # fmt: skip
    assert steps == sorted(steps)


def test_mode_and_previous_file_are_kept(path: Path) -> None:
    store = Store(path)
    store.snapshot()
    path.chmod(0o660)
    before = path.read_bytes()
    with store.write() as transaction:
        transaction.system.admin.features["a"] = "b"
    assert path.stat().st_mode & 0o777 == 0o660
    assert path.with_name("qubes.xml.1").read_bytes() == before != path.read_bytes()


def test_a_subscriber_that_fails_harms_nobody(path: Path) -> None:
    store = Store(path)
    heard: list[Change] = []

    def fail(_changes: object) -> None:
        raise ZeroDivisionError

    store.subscribe(fail)
    store.subscribe(heard.extend)
    with store.write() as transaction:
        transaction.system.admin.features["a"] = "b"
    assert len(heard) == 1 and store.snapshot().admin.features["a"] == "b"


def test_an_invalid_file_is_an_error_and_check_names_what_does_not_hold(path: Path) -> None:
    store = Store(path)
    store.snapshot()
    assert subprocess.run(command(path, "check")).returncode == 0
    text = path.read_text()
    path.write_text(text.replace('name="default" driver', 'name="other" driver'))
    found = subprocess.run(command(path, "check"), capture_output=True)
    assert found.returncode == 1 and b"default_pool" in found.stdout
    path.write_text(text[:200])
    with pytest.raises(StoreError, match=r"qubes\.xml:\d+"):
        store.snapshot()
