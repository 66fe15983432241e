"""The store survives: kills at any instant and between any two system calls, full disks, damage, other hands."""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.model.changes import Change, DomainAdded, DomainRemoved, FeatureSet, PropertyReset, PropertySet
from casemate.store.files import Files
from casemate.store.store import Store
from casemate.wire.errors import StoreError
from tests.builders import small_system
from tests.component.laws.processes import counters, finish, line, run, scaled, spawn
from tests.component.stores import bump, whole

CALLS = ("create", "write", "set_owner", "sync", "close", "link", "rename", "sync_directory", "remove")


class Faulty(Files):
    """Does something before and after each system call of a save; the file layer itself stays as it is."""

    def __init__(self, between: Callable[[str], None]) -> None:
        self.between = between

    def __getattribute__(self, name: str) -> object:
        found = object.__getattribute__(self, name)
        if name not in CALLS:
            return found

        def call(*words: object) -> object:
            self.between(f"before {name}")
            result = found(*words)
            self.between(f"after {name}")
            return result

        return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a few qubes."""
    path = tmp_path / "qubes.xml"
    Store(path).begin_with(small_system())
    return path


def steps(path: Path) -> list[str]:
    """What a save does, in order."""
    seen: list[str] = []
    bump(Store(path, files=Faulty(seen.append)))
    return seen


def test_killed_between_every_two_system_calls(path: Path) -> None:
    """A process dies at each point; the file is the old one until the rename, the new one from then on."""
    order = steps(path)
    assert [s for s in order if s in ("after sync", "after rename", "after sync_directory")] == [
        "after sync", "after rename", "after rename", "after sync_directory"
    ]  # fmt: skip
    last_rename = max(i for i, step in enumerate(order) if step == "after rename")
    for at in range(len(order)):
        before = int(whole(path).get("n", "0"))
        child = os.fork()
        if child == 0:
            seen = []

            def die(step: str, seen: list[str] = seen, at: int = at) -> None:
                seen.append(step)
                if len(seen) > at:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                bump(Store(path, files=Faulty(die)))
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, order[at]
        after = int(whole(path).get("n", "0"))
        assert after == before + (at >= last_rename), order[at]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_at_every_system_call(path: Path, number: int) -> None:
    """Reported; the old file intact (after the rename: the new one, and said so); the lock free; no temporary file."""
    order = steps(path)
    last_rename = max(i for i, step in enumerate(order) if step == "after rename")
    for at in range(0, len(order), 2):
        before = int(whole(path).get("n", "0"))
        seen: list[str] = []

        def fail(step: str, seen: list[str] = seen, at: int = at) -> None:
            seen.append(step)
            if len(seen) == at + 1:
                raise OSError(number, os.strerror(number))

        heard: list[Change] = []
        store = Store(path, files=Faulty(fail))
        store.subscribe(heard.extend)
        with pytest.raises(StoreError, match="not saved|still undo") as caught:
            bump(store)
        saved = at > last_rename
        assert ("still undo" in str(caught.value)) == saved == bool(heard)
        assert int(whole(path).get("n", "0")) == before + saved == int(store.snapshot().admin.features.get("n", "0"))


def test_t04_random_kills_under_load(path: Path) -> None:
    """Writers and readers killed at random: nothing acknowledged is lost, nothing is torn, nothing piles up."""
    dice, acknowledged, killed = random.Random(20), 0, 0
    kills = scaled(40, 1000)
    while killed < kills:
        writers = [spawn(path, "increment", "n", "--times", "1000000") for _ in range(3)]
        readers = [spawn(path, "loop", "n", "--seconds", "60") for _ in range(2)]
        acknowledged += sum(bool(line(writer)) for writer in writers)
        for process in readers:
            assert line(process) == "reading"
        everybody = [*writers, *readers]
        dice.shuffle(everybody)
        for one in everybody:
            time.sleep(dice.uniform(0, 0.03))
            one.send_signal(signal.SIGKILL)
            killed += 1
        for one in everybody:
            out, err = one.communicate(timeout=30)
            assert err == b""
            if one in writers:
                acknowledged += out.count(b"\n")
        stored = int(whole(path)["n"])
        assert acknowledged <= stored <= acknowledged + killed


def test_concurrent_changes_of_different_qubes_by_8_processes(path: Path) -> None:
    each = scaled(40, 1250)
    qubes = ["deb", "net", "work", "base", "disp7", "dom0", "work", "net"]
    workers = [
        spawn(path, "increment", f"n{index}", "--times", str(each), "--qube", qube, timeout=250)
        for index, qube in enumerate(qubes)
    ]
    for worker in workers:
        assert len(finish(worker)) == each
    system = Store(path).snapshot()
    counted = [int(system.domains[qube].features[f"n{index}"]) for index, qube in enumerate(qubes)]
    assert sum(counted) == 8 * each


def test_group_commit_keeps_every_change_and_every_refusal(path: Path) -> None:
    """Threads of one daemon: a burst is a few saves, each change stands or falls alone, events come for what stands."""
    syncs: list[str] = []
    store = Store(path, files=Faulty(lambda step: syncs.append(step) if step == "after sync" else None))
    heard: list[Change] = []
    store.subscribe(heard.extend)
    refused, start = [], threading.Barrier(24)

    def work(index: int) -> None:
        start.wait()
        for number in range(20):
            if index % 4 == 3:
                try:
                    store.change(lambda system: system.remove("deb"))
                except Exception as error:
                    refused.append(error)
            else:
                name = f"t{index}.{number}"
                assert store.change(lambda system, name=name: system.admin.features.set(name, "1") or name) == name

    threads = [threading.Thread(target=work, args=(index,)) for index in range(24)]
    with store.write():
        for thread in threads:
            thread.start()
        time.sleep(0.1)  # so that some wait together
    for thread in threads:
        thread.join()
    stood = 18 * 20
    assert len(refused) == 6 * 20 and "deb" in store.snapshot().domains
    assert sum(name.startswith("t") for name in Store(path).snapshot().admin.features) == stood
    assert len([change for change in heard if isinstance(change, FeatureSet)]) == stood
    assert len(syncs) < stood / 2, "every change was saved alone"


def test_t03_a_full_disk(path: Path, tmp_path: Path) -> None:
    """On a real file system without room where we may mount one; else by a limit on the size of files."""
    room = tmp_path / "room"
    room.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(room)], capture_output=True
    ).returncode == 0  # fmt: skip
    try:
        full = room / "qubes.xml"
        Store(full).begin_with(small_system())
        before = full.read_bytes()
        command: list[str] = []
        if mounted:
            filler = os.open(room / "log", os.O_WRONLY | os.O_CREAT)
            try:
                while True:
                    os.write(filler, bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            os.close(filler)
        else:
            command = ["prlimit", f"--fsize={100}"]
        done = subprocess.run([*command, sys.executable, "-m", "casemate.store", str(full), "set", "a", "b"],
                              capture_output=True)  # fmt: skip
        assert done.returncode == 1 and b"not saved" in done.stderr, done.stderr
        assert full.read_bytes() == before and not list(room.glob(".*"))
        (room / "log").unlink(missing_ok=True)
        assert run(full, "set", "a", "b").returncode == 0
        whole(full)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(room)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_file_system(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        store = Store(place / "qubes.xml")
        store.begin_with(small_system())
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert len(Store(store.path).snapshot().domains) == 6, "reading takes no lock and writes nothing"
        with pytest.raises(StoreError, match=r"[Rr]ead-only"), Store(store.path).write():
            raise AssertionError("entered")
        with pytest.raises(StoreError, match=r"[Rr]ead-only"):
            bump(store)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_file_edited_by_hand_is_picked_up_and_told(path: Path) -> None:
    store = Store(path)
    store.snapshot()
    heard: list[Change] = []
    store.subscribe(heard.extend)
    text = path.read_text()
    edited = text.replace(
        '<property name="name">work</property>',
        '<property name="name">work</property>\n        <property name="memory">1234</property>',
    )
    edited = edited.replace('<property name="provides_network">True</property>',
                            '<!-- by hand -->\n <property name="provides_network">yes</property>')  # fmt: skip
    temporary = path.with_name("edited")
    temporary.write_text(edited)
    temporary.rename(path)
    assert store.snapshot().domains["work"].memory == 1234
    assert heard == [PropertySet("work", "memory", "1234", "400", True)]
    store.snapshot()
    assert len(heard) == 1, "told once"
    assert run(path, "set", "memory", "777", "--qube", "work", "--property").returncode == 0
    with store.write() as transaction:
        transaction.system.domains["work"].reset("memory")
        transaction.system.remove("disp7")
        transaction.system.add("AppVM", "new", uuid=__import__("uuid").uuid4())
    assert heard[1] == PropertySet("work", "memory", "777", "1234", True), "another process's change comes first"
    assert heard[2:] == [PropertyReset("work", "memory", "777", True), DomainRemoved("disp7", "DispVM"),
                         DomainAdded("new", "AppVM")]  # fmt: skip


def test_a_second_process_hears_everything_once(path: Path) -> None:
    """Whatever one process does, another that looks now and then is told all of it, in sum."""
    here, there = Store(path), Store(path)
    there.snapshot()
    heard: list[Change] = []
    there.subscribe(heard.extend)
    with here.write() as transaction:
        system = transaction.system
        system.domains["work"].features["x"] = "1"
        system.domains["work"].tags.add("seen")
        system.domains["net"].tags.remove("created-by-dom0")
        system.domains["work"].label = system.labels["green"]
        system.add_label("mauve", "0xe0b0ff")
        system.add_pool("fast", "qcow2", {"dir_path": "/x"})
        system.default_netvm = None
        expected = sorted(map(repr, transaction.changes))
    there.snapshot()
    assert sorted(map(repr, heard)) == expected


def test_t13_order_of_system_calls_and_t16_mode(path: Path) -> None:
    order = steps(path)
    for earlier, later in (("after write", "before sync"), ("after sync", "before rename"),
                           ("after rename", "before sync_directory")):  # fmt: skip
        assert order.index(earlier) < order.index(later), order
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, -1, 12345)
    group = path.stat().st_gid
    bump(Store(path))
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o640, group)


def test_t14_a_writer_that_ignores_the_lock_is_noticed(path: Path) -> None:
    holder = spawn(path, "save-twice", "n", "--wait")
    assert line(holder) == "saved"
    foreign = path.with_name("foreign")
    foreign.write_bytes(path.read_bytes())
    foreign.rename(path)
    _, err = holder.communicate(timeout=30)
    assert holder.returncode == 1 and b"ignores its lock" in err
    assert counters(path, "n")[0] == 1


@pytest.fixture(autouse=True)
def no_descriptor_is_lost() -> Iterator[None]:
    """Stores that nobody has any more have closed the files of their locks."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 4
