"""``make bench``: measures on real machines and writes the table to docs/reference/performance.md."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from casemate.cli.clean import machines_of
from casemate.qdb.client import QubesDB
from tests.bench import caller, figures, raw, start
from tests.bench.bare import Bare, same_machine
from tests.bench.figures import Row, middle, percentile, seconds
from tests.live.world import TEMPLATE, World

QUBE = "work"
STARTS = 3
CALLS = 5000
ALONE = 500
"""Of those, one after the other; the others 16 at once."""
AT_ONCE = 16
STREAM = 64 << 20
CHUNK = caller.CHUNK
MIB = 1 << 20

_SPAWN = """
import os, time
times = []
for _ in range(60):
    begin = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    times.append(time.perf_counter() - begin)
print(sorted(times)[30])
"""


class Bench:
    """One run: an installation of its own, what was measured, the rows."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.directory = directory
        self.rows: list[Row] = []
        self.kind = ""
        self.trips: list[float] = []
        self.streamed: dict[str, list[float]] = {}

    @property
    def link(self) -> Path:
        """The qube's socket for calls."""
        return self.world.settings.link_socket(QUBE)

    def run(self) -> None:
        """Measure everything."""
        say("an installation of its own, from the cached template")
        self.world.run("casemate", "template", "build", timeout=1800)
        self.world.run("qvm-create", "--label", "blue", QUBE)
        self.world.run("casemate", "status")  # so that nothing of a first time is in what follows
        self.starts()
        self.world.run("qvm-start", QUBE)
        self.calls()
        self.streams()
        self.memory()
        self.tools()

    # -- start

    def starts(self) -> None:
        """Alternately through the tools and bare; the raw channel is measured on the last bare guest."""
        state = self.world.settings.state
        disks = {
            "root": state / "pools" / "default" / TEMPLATE / "root.qcow2",
            "private": state / "pools" / "default" / QUBE / "private.qcow2",
        }
        ours: list[start.Start] = []
        bare: list[start.Start] = []
        for number in range(STARTS + 1):
            say(f"start {number} of {STARTS}" if number else "a start that does not count")
            begin = time.monotonic()
            self.world.run("qvm-start", QUBE)
            total = time.monotonic() - begin
            ours.append(start.parts(self.link, begin, total))
            machine = same_machine(self._command_line())
            self.kind = machine[machine.index("-accel") + 1]
            with QubesDB(self.world.settings.database_socket(QUBE)) as database:
                content = {key: value.decode("latin-1") for key, value in database.multiread("/").items()}
            self.world.run("qvm-shutdown", "--wait", QUBE)
            directory = self.directory / str(number)
            directory.mkdir()
            guest = Bare(directory, machine, disks, content)
            try:
                total = guest.start()
                bare.append(start.parts(guest.link, guest.begin, total))
                if number == STARTS:
                    self._raw(guest)
            finally:
                guest.close()
        self._start_rows(ours[1:], bare[1:])

    def _command_line(self) -> list[str]:
        pid = next(pid for pid, name in machines_of(self.world.settings).items() if name == QUBE)
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")

    def _start_rows(self, ours: list[start.Start], bare: list[start.Start]) -> None:
        mine, limit = middle([one.total for one in ours]), middle([one.total for one in bare])
        ratio = mine / limit
        self.rows.append(Row(
            "start of a qube until its agent answers", seconds(mine), f"bare QEMU {seconds(limit)}", f"{ratio:.2f}",
            "≤ 1.25", ratio <= 1.25,
            f"`qvm-start` from the process's start to its end, the daemon running; beside it `qemu-system-x86_64` with "
            f"the same processor, memory, kernel, initrd and command line (taken from the running machine), fresh "
            f"layers over the same disks made before, and a link of ours connected to its port until the agent has "
            f"said that it is ready. Alternately, {STARTS} each after one that does not count; medians.",
        ))  # fmt: skip
        parts: tuple[tuple[str, Callable[[start.Start], float | None]], ...] = (
            ("until the guest's kernel has its clock", lambda one: one.before),
            ("kernel until its first program", lambda one: one.kernel),
            ("first program until the disks are mounted", lambda one: one.init),
            ("agent until it answers", lambda one: one.agent),
        )
        for what, part in parts:
            here, there = ([value for one in starts if (value := part(one)) is not None] for starts in (ours, bare))
            if not here or not there:
                continue
            self.rows.append(Row(
                f"– of that: {what}", seconds(middle(here)), seconds(middle(there)),
                f"{middle(here) / middle(there):.2f}",
                how="As told by the guest's own clock and kernel log after the start; the first part is what remains, "
                "with tool, volumes, libvirt, QEMU, firmware and the unpacking of the kernel in it.",
            ))  # fmt: skip

    def _raw(self, guest: Bare) -> None:
        say("the raw channel of the bare guest")
        with guest.connect_raw() as port:
            streams: dict[str, Callable[[], float]] = {
                "raw to": lambda: raw.send(guest.link, port, STREAM, CHUNK),
                "to": lambda: caller.send(guest.link, STREAM),
                "piped to": lambda: raw.send(guest.link, port, STREAM, CHUNK, "| cat >/dev/null"),
                "raw from": lambda: raw.receive(guest.link, port, STREAM, CHUNK),
                "from": lambda: caller.receive(guest.link, STREAM),
                "piped from": lambda: raw.receive(guest.link, port, STREAM, CHUNK, "cat /dev/zero | "),
            }
            for _ in range(3):
                for name, measure in streams.items():
                    self.streamed.setdefault(name, []).append(measure())
            self.trips = raw.round_trips(guest.link, port, 1000)

    # -- calls

    def calls(self) -> None:
        """One call on a running qube, then many."""
        say("calls")
        trip = middle(self.trips)
        caller.call(self.link, ["true"])
        tool = [timed(lambda: self.world.run("qvm-run", "--pass-io", QUBE, "true")) for _ in range(40)]
        call = [timed(lambda: caller.call(self.link, ["true"])) for _ in range(300)]
        shell = [timed(lambda: caller.shell(self.link, "true")) for _ in range(100)]
        spawn = float(caller.call(self.link, ["python3", "-I", "-S", "-c", _SPAWN]))
        over = middle(call) - trip
        self.rows.append(Row(
            "call of `true` on a running qube, p50", seconds(middle(call)), f"raw round trip {seconds(trip)}",
            f"+ {seconds(over)}", "≤ 5 ms over the round trip", over <= 0.005,
            "EXEC_CMDLINE for `qubes.VMExec+true` to the link's socket until its exit code, 300 calls in one process; "
            "beside it 1,000 messages of 8 bytes to a Python program on a port of its own in the bare guest and back.",
        ))  # fmt: skip
        self.rows.append(Row(
            "– the same, p95", seconds(percentile(call, 95)), f"raw round trip {seconds(percentile(self.trips, 95))}",
            f"{percentile(call, 95) / percentile(self.trips, 95):.2f}", how="As the row before.",
        ))  # fmt: skip
        self.rows.append(Row(
            "– beside what the program itself takes", seconds(middle(call)), f"spawn and wait {seconds(spawn)}",
            f"{middle(call) / spawn:.2f}",
            how="In the same guest a Python program spawns `/bin/true` and waits for it, 60 times; median.",
        ))  # fmt: skip
        self.rows.append(Row(
            "`qvm-run --pass-io work true`, p50 and p95",
            f"{seconds(middle(tool))}, {seconds(percentile(tool, 95))}", f"call without tool {seconds(middle(shell))}",
            f"{middle(tool) / middle(shell):.2f}",
            how="The tool as a process, 40 times, one after the other. Beside it the same call (`qubes.VMShell`: a "
            "shell that becomes a shell that runs `true`) to the link's socket, 100 times in one process; medians.",
        ))  # fmt: skip
        self._many()

    def _many(self) -> None:
        say(f"{CALLS} calls")

        def echo(number: int) -> bool:
            try:
                return caller.call(self.link, ["echo", str(number)]) == b"%d\n" % number
            except (OSError, caller.Failed):
                return False

        begin = time.perf_counter()
        good = sum(echo(number) for number in range(ALONE))
        alone = ALONE / (time.perf_counter() - begin)
        begin = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            good += sum(threads.map(echo, range(ALONE, CALLS)))
        together = (CALLS - ALONE) / (time.perf_counter() - begin)
        self.rows.append(Row(
            "calls a second, 16 at once", f"{together:.0f}", f"one at a time {alone:.0f}", f"{together / alone:.2f}",
            how=f"`echo NUMBER` by `qubes.VMExec`; {ALONE} one after the other, {CALLS - ALONE} by 16 threads.",
        ))  # fmt: skip
        self.rows.append(Row(
            f"calls lost or answered wrongly, of {CALLS}", str(CALLS - good), aim="0", met=good == CALLS,
            how="Those of the row before: each must end with status 0 and its own number.",
        ))  # fmt: skip

    # -- streams

    def streams(self) -> None:
        """64 MiB each way: what was measured on the bare guest."""
        for way, program in (("to", "`cat >/dev/null`"), ("from", "`head -c 67108864 /dev/zero`")):
            mine, limit, piped = (middle(self.streamed[f"{kind}{way}"]) for kind in ("", "raw ", "piped "))
            self.rows.append(Row(
                f"stream {way} the guest, 64 MiB", rate(mine), f"raw {rate(limit)}", f"{limit / mine:.2f}",
                "≥ 0.8", limit / mine >= 0.8,
                f"One call of {program} through link and agent, 64 KiB messages, from the first byte until its exit "
                "code; beside it `dd` with 64 KiB blocks on a port of its own. In the same (bare) guest by turns, 3 "
                "times each; medians.",
            ))  # fmt: skip
            self.rows.append(Row(
                "– the same, beside a pipe in the guest", rate(mine), f"raw with a pipe {rate(piped)}",
                f"{piped / mine:.2f}",
                how="What is streamed passes a pipe between agent and program; here `dd` on the port does too (the "
                "other end is `cat`). By turns with the row before.",
            ))  # fmt: skip

    # -- memory, tools

    def memory(self) -> None:
        """What our processes take while a qube runs."""
        how = "Pss of `/proc/PID/smaps_rollup` after all of the above; pages shared with others count in part."
        link = pss(self.world.link_pid(QUBE))
        self.rows.append(Row(
            "memory per running qube (its link)", f"{link:.1f} MiB", ratio="", aim="≤ 12 MiB", met=link <= 12, how=how,
        ))  # fmt: skip
        self.rows.append(Row("memory of casemated", f"{pss(self.world.daemon_pid()):.1f} MiB", how=how))

    def tools(self) -> None:
        """Tools beside a Python that does nothing."""
        say("tools")
        python = [str(Path(sys.executable)), "-I", "-S", "-c", "pass"]
        times: dict[str, list[float]] = {"python": [], "qvm-ls": [], "qvm-prefs": []}
        for _ in range(25):
            times["python"].append(timed(lambda: subprocess.run(python, check=True)))
            times["qvm-ls"].append(timed(lambda: self.world.run("qvm-ls")))
            times["qvm-prefs"].append(timed(lambda: self.world.run("qvm-prefs", QUBE)))
        bare = middle(times["python"])
        for name in ("qvm-ls", "qvm-prefs"):
            mine = middle(times[name])
            self.rows.append(Row(
                f"`{name}` with two qubes", seconds(mine), f"bare Python {seconds(bare)}", f"{mine / bare:.2f}",
                how="As processes, in turn, 25 times each; medians. Bare: `python3 -I -S -c pass`, the same Python.",
            ))  # fmt: skip


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def timed(action: Callable[[], object]) -> float:
    """Seconds that something takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def rate(taken: float) -> str:
    """The speed of a stream."""
    return f"{STREAM / MIB / taken:.0f} MiB/s"


def pss(pid: int) -> float:
    """Proportional memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise LookupError(pid)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="print the table, do not write the page")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # whoever ends us, all is cleaned up
    directory = Path(tempfile.mkdtemp(prefix="cmb", dir="/tmp"))  # noqa: S108
    directory.chmod(0o711)  # qubes' own users pass through
    world = World(directory / "s")
    try:
        (directory / "bare").mkdir()
        bench = Bench(world, directory / "bare")
        before = figures.host("?").rpartition("Load average ")[2]
        bench.run()
        text = f"{figures.host(bench.kind)} at the end, {before} at the beginning.\n\n{figures.table(bench.rows)}\n"
    finally:
        world.clean()
        shutil.rmtree(directory, ignore_errors=True)
    print(text)
    if not args.dry:
        figures.write("make bench", "Qubes", text)
        say(f"written to {figures.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
