"""``python -m tests.bench.store``: the store and its lock, as ratios within one run, at 10 to 5,000 qubes.

With ``--write`` the tables go to docs/reference/performance.md, section "Store". What is compared is measured in turn,
round by round, so that a busy host slows both sides alike.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

from lxml import etree

from casemate.model.system import System
from casemate.store import reader, writer
from casemate.store.lock import FileLock
from casemate.store.store import Store
from tests.bench.figures import seconds, write
from tests.builders import settings_in

ROOT = Path(__file__).parents[2]
SIZES = (10, 100, 1000, 5000)


def collection(count: int) -> System:
    """So many qubes, each with properties, ten features, a tag and three volumes."""
    system = System.initial()
    system.add("TemplateVM", "debian", uuid=UUID(int=1), label="black")
    net = system.add("AppVM", "net", uuid=UUID(int=2), template="debian")
    net.provides_network, net.netvm = True, None
    system.default_netvm = net
    for number in range(count - 3):
        qube = system.add("AppVM", f"q{number}", uuid=UUID(int=10 + number), template="debian", label="blue")
        qube.memory, qube.vcpus, qube.autostart, qube.default_user = 400 + number % 7, 2, False, "user"
        for feature in range(10):
            qube.features[f"service.s{feature}"] = "1"
        qube.tags.add("bench")
    system.changes.clear()
    return system


def compare(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The median time of each, taken in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for found, work in zip(times, works, strict=True):
            begin = time.perf_counter()
            work()
            found.append(time.perf_counter() - begin)
    return [statistics.median(found) for found in times]


class Table:
    """Rows of one quantity at all sizes."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.missed = 0

    def add(
        self, what: str, mine: str, limit: str, ratio: float | None, aim: float | None, least: bool = False
    ) -> None:
        """One row; ``least``: the ratio should be at least the aim."""
        word = ""
        if ratio is not None and aim is not None:
            met = ratio >= aim if least else ratio <= aim
            self.missed += not met
            word = "met" if met else "**not met**"
        shown = "" if ratio is None else f"{ratio:.2f}"
        wanted = "" if aim is None else f"{'≥' if least else '≤'} {aim:g}"
        self.rows.append(f"| {what} | {mine} | {limit} | {shown} | {wanted} | {word} |")
        print(f"{what:<58} {mine:>12} {limit:>12} {shown:>8} {wanted:>7} {word}", flush=True)


def _raw_save(directory: Path, data: bytes) -> Callable[[], None]:
    def save() -> None:
        fd = os.open(directory / "raw.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.rename(directory / "raw.new", directory / "raw")
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    return save


def sizes(table: Table, directory: Path) -> None:
    """Load, save, one change, snapshot, lookup; and how each grows."""
    before: dict[str, tuple[int, float]] = {}

    def grows(what: str, count: int, value: float) -> None:
        old = before.get(what)
        if old is not None and old[0] >= 100:
            table.add(f"growth of {what}, {old[0]} to {count}, per qube", "", "", value / count * old[0] / old[1], 1.5)
        before[what] = (count, value)

    for count in SIZES:
        system = collection(count)
        data = writer.write(system)
        path = directory / f"{count}.xml"
        path.write_bytes(data)
        rounds = 3 if count > 1000 else 7
        load, parse = compare(rounds, lambda data=data: reader.read(data), lambda data=data: etree.fromstring(data))
        table.add(f"{count} qubes: load / lxml parsing alone", seconds(load), seconds(parse), load / parse, 4)
        grows("load", count, load)
        store = Store(path)
        store.snapshot()
        number = iter(range(10**9))

        def change(store: Store = store, number: object = number) -> None:
            store.change(lambda s: s.domains["q3"].features.set("n", str(next(number))))  # type: ignore[call-overload]

        change()
        raw = _raw_save(directory, path.read_bytes())

        def serialise(store: Store = store, raw: Callable[[], None] = raw) -> None:
            writer.write(store.snapshot())
            raw()

        one, bare, whole = compare(25, change, raw, serialise)
        table.add(f"{count} qubes: save / serialise + fsync + rename", seconds(one), seconds(whole), one / whole, 1.5)
        table.add(f"{count} qubes: one change / write + fsync + rename", seconds(one), seconds(bare), one / bare, 2)
        grows("one change", count, one)
        other = Store(path)
        other.snapshot()

        def foreign(store: Store = store, other: Store = other) -> None:
            change(store)
            other.snapshot()

        both, alone = compare(9, foreign, lambda store=store: change(store))
        table.add(f"{count} qubes: another's change seen / lxml parsing", seconds(both - alone), seconds(parse),
                  max(0.0, both - alone) / parse, 4)  # fmt: skip
        hit, status = compare(5, lambda store=store: [store.snapshot() for _ in range(2000)],
                              lambda path=path: [path.stat() for _ in range(2000)])  # fmt: skip
        table.add(f"{count} qubes: snapshot, unchanged / stat", seconds(hit / 2000), seconds(status / 2000),
                  hit / status, 3)  # fmt: skip
        domains, name = store.snapshot().domains, f"q{count // 2}"
        domains[name]
        plain = {name: domains[name] for name in domains}
        found, least = compare(5, lambda d=domains, name=name: [d[name] for _ in range(10000)],
                               lambda d=plain, name=name: [d[name] for _ in range(10000)])  # fmt: skip
        table.add(f"{count} qubes: look one up by name / dict", seconds(found / 10000), seconds(least / 10000),
                  None, None)  # fmt: skip
        store.close()


def burst(table: Table, directory: Path) -> None:
    """100 changes of 20 threads at 1,000 qubes: group commit, against one save."""
    store = Store(directory / "1000.xml")
    store.snapshot()

    def one() -> None:
        store.change(lambda s: s.domains["q3"].features.set("b", str(time.perf_counter_ns())))

    def many() -> None:
        def work(index: int) -> None:
            for number in range(5):
                store.change(lambda s: s.domains[f"q{index}"].features.set("b", f"{number}.{time.perf_counter_ns()}"))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_of_them, alone = compare(5, many, one)
    table.add("100 changes by 20 threads, 1000 qubes / one change", seconds(all_of_them), seconds(alone),
              all_of_them / alone, None)  # fmt: skip


_READER = """
import sys, time
from pathlib import Path
from casemate.store.store import Store
store = Store(Path(sys.argv[1])); store.snapshot(); end = time.monotonic() + float(sys.argv[2]); n = 0
while time.monotonic() < end:
    store.snapshot().domains["q3"]; n += 1
print(n)
"""
_LOOKER = """
import sys, time
from pathlib import Path
from casemate.store.store import Store
path = Path(sys.argv[1]); domains = Store(path).snapshot().domains; end = time.monotonic() + float(sys.argv[2]); n = 0
while time.monotonic() < end:
    path.stat(); domains["q3"]; n += 1
print(n)
"""
_WRITER = """
import sys, time
from pathlib import Path
from casemate.store.store import Store
store = Store(Path(sys.argv[1])); end = time.monotonic() + float(sys.argv[2]); n = 0
while time.monotonic() < end:
    store.change(lambda s: s.domains["q4"].features.set("w", str(n))); n += 1
    time.sleep(float(sys.argv[3]))
print(n)
"""


def _python(code: str, *words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE)


def readers_and_writer(table: Table, directory: Path) -> None:
    """Snapshots per second while another process writes, against none that writes."""
    path = directory / "100.xml"
    for pause, what in ((0.1, "10 changes/s"), (0.0, "a writer without pause")):
        rates: list[list[int]] = [[], [], [], []]
        writes = 0
        for _ in range(3):
            for kind in range(4):
                writer = _python(_WRITER, path, 1.5, pause) if kind % 2 else None
                reader = _python(_READER if kind < 2 else _LOOKER, path, 1.0)
                rates[kind].append(int(reader.communicate()[0]))
                if writer is not None:
                    writes = int(writer.communicate()[0])
        calm, busy, idle, least = (statistics.median(found) for found in rates)
        table.add(f"snapshots/s, 100 qubes: {what} ({writes / 1.5:.0f}/s) / none", f"{busy:.0f}", f"{calm:.0f}",
                  busy / calm, 0.9, least=True)  # fmt: skip
        table.add("– the same of one that only asks for the file's time, and reads nothing", f"{least:.0f}",
                  f"{idle:.0f}", least / idle, None)  # fmt: skip


_LIST = "import sys; sys.path.insert(0, sys.argv.pop(1)); from casemate.cli.qvm_ls import main; sys.exit(main([]))"


def listing(table: Table, directory: Path) -> None:
    """``qvm-ls`` as a process, with the Admin API's server over a store in another one, against a bare Python."""
    for count in (10, 1000):
        state = directory / f"state-{count}"
        state.mkdir()
        (state / "qubes.xml").write_bytes(writer.write(collection(count)))
        settings = settings_in(state)
        environment = {**os.environ, **settings.environment(), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        bare = [sys.executable, "-I", "-S", "-c", "pass"]
        tool = [sys.executable, "-I", "-S", "-c", _LIST, str(ROOT / "src")]
        server = subprocess.Popen([sys.executable, "-m", "tests.fakes.daemon_process"], env=environment, cwd=ROOT)
        try:
            while not settings.api_socket.exists():
                if server.poll() is not None:
                    raise RuntimeError("the server has ended")
                time.sleep(0.01)
            store = Store(settings.store_file)

            def run(words: list[str], environment: dict[str, str] = environment) -> int:
                done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
                return done.stdout.count(b"\n")

            def after_change(store: Store = store, tool: list[str] = tool) -> None:
                store.change(lambda s: s.domains["q3"].features.set("n", str(time.perf_counter_ns())))
                run(tool)

            if run(tool) != count + 1:
                raise RuntimeError("qvm-ls does not list all")
            mine, limit, fresh = compare(15, lambda tool=tool: run(tool), lambda bare=bare: run(bare), after_change)
            table.add(f"{count} qubes: qvm-ls / bare Python start", seconds(mine), seconds(limit), mine / limit, 3)
            table.add(f"{count} qubes: a change and qvm-ls / bare Python start", seconds(fresh), seconds(limit),
                      fresh / limit, None)  # fmt: skip
        finally:
            server.terminate()
            server.wait()


def locks(table: Table, directory: Path) -> None:
    """Pairs per second in one process, and a writer's wait among readers."""
    lock = FileLock(directory / "lock")
    fd = os.open(directory / "raw.lock", os.O_RDWR | os.O_CREAT)
    count = 20000

    def ours(take: Callable[[], object]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(count):
                with take():  # type: ignore[attr-defined]
                    pass

        return work

    def raw(mode: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(count):
                fcntl.flock(fd, mode | fcntl.LOCK_NB)
                fcntl.flock(fd, fcntl.LOCK_UN)

        return work

    rivals: list[tuple[str, Callable[[], None], Callable[[], None]]] = []
    try:
        import fasteners
    except ImportError:
        print("fasteners is not installed: not compared (make setup)")
    else:
        rival = fasteners.InterProcessReaderWriterLock(str(directory / "fasteners"))

        def theirs(take: Callable[[], object]) -> Callable[[], None]:
            def work() -> None:
                for _ in range(count // 20):
                    with take():  # type: ignore[attr-defined]
                        pass

            return work

        rivals = [("shared", theirs(rival.read_lock), ours(lock.shared)),
                  ("exclusive", theirs(rival.write_lock), ours(lock.exclusive))]  # fmt: skip
    for what, mine, limit in (("shared", ours(lock.shared), raw(fcntl.LOCK_SH)),
                              ("exclusive", ours(lock.exclusive), raw(fcntl.LOCK_EX))):  # fmt: skip
        one, least = compare(7, mine, limit)
        table.add(f"{what} lock, pairs/s / flock alone (times, not rates)", f"{count / one:,.0f}",
                  f"{count / least:,.0f}", one / least, 3)  # fmt: skip
    for what, slow, mine in rivals:
        rival_time, one = compare(3, slow, mine)
        table.add(f"{what} lock, pairs/s / fasteners (times)", f"{count / one:,.0f}", f"{count / 20 / rival_time:,.0f}",
                  one / (rival_time * 20), 1)  # fmt: skip
    os.close(fd)
    path = directory / "10.xml"
    readers = [
        subprocess.Popen([sys.executable, "-m", "casemate.store", str(path), "loop", "n", "--seconds", "60",
                          "--hold", "0.005"], stdout=subprocess.PIPE)
        for _ in range(7)
    ]  # fmt: skip
    for process in readers:
        assert process.stdout is not None
        process.stdout.readline()
    waits = []
    held = FileLock(path)
    for _ in range(200):
        begin = time.perf_counter()
        with held.exclusive(20):
            waits.append(time.perf_counter() - begin)
        time.sleep(0.002)
    for process in readers:
        process.kill()
        process.communicate()
    table.add("longest of 200 waits of a writer, 7 readers of 5 ms", seconds(max(waits)), "", None, None)
    table.add("median of them", seconds(statistics.median(waits)), "", None, None)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 also when an aim is missed: the table says so."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/performance.md")
    args = parser.parse_args(argv)
    directory = Path(tempfile.mkdtemp(prefix="bench-store-"))
    table = Table()
    load = os.getloadavg()[0]
    try:
        sizes(table, directory)
        burst(table, directory)
        readers_and_writer(table, directory)
        listing(table, directory)
        locks(table, directory)
    finally:
        shutil.rmtree(directory)
    if args.write:
        lines = [
            f"`python -m tests.bench.store --write`, {os.cpu_count()} processors, load average {load:.1f} at the "
            f"beginning and {os.getloadavg()[0]:.1f} at the end; medians, both sides in turn.",
            "",
            "| What | Casemate | Beside it | Ratio | Aim | |",
            "|---|---|---|---|---|---|",
            *table.rows,
        ]
        write("bench store", "Store", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
