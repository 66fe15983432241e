"""Law 3: save is not unlock. Many saves happen under one exclusive lock, and nobody comes in between."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from casemate.store.store import Store
from casemate.wire.errors import StoreError
from tests.component.laws.processes import BUSY, counters, finish, line, run, scaled, spawn


def test_t02_three_saves_while_readers_and_writers_wait(path: Path) -> None:
    """Nobody sees or overwrites a middle state, nobody gets in before the end, all get in after it."""
    holder = spawn(path, "save-many", "n", "--saves", "3", "--wait")
    assert line(holder) == "saved"
    readers = [spawn(path, "read", "n", "n.twin") for _ in range(8)]
    writers = [spawn(path, "increment", "n") for _ in range(2)]
    # A lock of the file that the save replaced would let these in now.
    for words in (("read", "n"), ("increment", "n")):
        assert run(path, *words, timeout=0.3).returncode == BUSY
    assert holder.stdin is not None
    holder.stdin.write(b"\n")
    assert line(holder) == "saved"
    assert run(path, "increment", "n", timeout=0.3).returncode == BUSY
    assert all(one.poll() is None for one in (*readers, *writers)), "somebody got in"
    finish(holder)
    for reader in readers:
        seen = finish(reader)
        number = seen[0].removeprefix("n=")
        assert int(number) >= 2 and seen[1] == f"n.twin={number}", "a middle state was seen"
    for writer in writers:
        finish(writer)
    assert counters(path, "n") == (4, 4)


def test_t02_sums_match_while_all_run(path: Path) -> None:
    """Everybody at once, with pauses between the saves: no increment lost, no torn state behind the lock."""
    rounds = scaled(3, 20)
    loops = [spawn(path, "loop", "n", "--seconds", str(rounds * 0.8)) for _ in range(3)]
    for loop in loops:
        assert line(loop) == "reading"
    writers = [spawn(path, "increment", "n", "--times", str(rounds * 5)) for _ in range(2)]
    for _ in range(rounds):
        finish(spawn(path, "save-many", "n", "--saves", "2", "--pause", "0.1"))
    for writer in writers:
        finish(writer)
    for loop in loops:
        assert finish(loop)[-1].endswith("torn=0")
    assert counters(path, "n") == (rounds * 11, rounds * 11)


def test_a_snapshot_never_waits_and_is_always_one_saved_version(path: Path) -> None:
    holder = spawn(path, "save-many", "n", "--saves", "2", "--wait")
    assert line(holder) == "saved"
    said = finish(spawn(path, "snapshot", "x", "--seconds", "0.3"))[-1]
    assert float(said.rpartition("=")[2]) < 0.25, "a reader without the lock waited"
    seen = Store(path).snapshot().admin.features
    assert (seen["n"], seen.get("n.twin")) == ("1", None), "the last saved version, whole"
    finish(holder)


def test_a_whole_run_under_one_lock_by_the_public_api(path: Path) -> None:
    """As a suite of tests would: hold the lock from the first to the last, saving all the time."""
    store, stop, seen = Store(path), threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            seen.append(int(store.snapshot().admin.features.get("n", "0")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    rounds = scaled(60, 500)
    with store.write() as transaction:
        for number in range(1, rounds + 1):
            transaction.system.admin.features["n"] = str(number)
            transaction.save()
            if number % 20 == 0:
                assert run(path, "increment", "n", timeout=0.05).returncode == BUSY
    stop.set()
    watcher.join()
    assert seen == sorted(seen) and max(seen) <= rounds
    assert run(path, "increment", "n").stdout == f"{rounds + 1}\n".encode()


def test_t12_the_lock_is_not_taken_twice_and_given_back_once(path: Path) -> None:
    store = Store(path)
    with store.write():
        for again in (store.read, store.write):
            with pytest.raises(StoreError, match="already"), again():
                raise AssertionError("entered twice")
        assert run(path, "increment", "n", timeout=0.2).returncode == BUSY, "the refused attempt gave the lock back"
    begin = time.monotonic()
    assert run(path, "increment", "n").returncode == 0 and time.monotonic() - begin < 10
