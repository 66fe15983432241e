"""``python -m tests.bench.disposables``: how soon a disposable answers: booted, from a warm image, waiting; in one run.

With ``--write`` the table goes to docs/reference/performance.md, section "Disposables". The three are measured in turn;
a running qube is the limit.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from casemate.cli.clean import machines_of
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from tests.bench import caller, figures, of_world
from tests.builders import wait_for
from tests.live.world import World

ROUNDS = 8
SECONDS = 300
TEMPLATE = "pre"
PROGRESS = sys.stderr


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class Bench:
    """One state with a running qube and a disposable template."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.qubes = Qubes(Transport(world.settings, daemon=()))

    def waiting(self, count: int) -> None:
        """Have so many wait, and return when they do."""
        self.world.run("qvm-features", TEMPLATE, "preload-dispvm-max", str(count))
        words = ("qvm-ls", "--raw-data", "--fields", "name", "--internal", "y")
        paused = (*words, "--paused")
        wait_for(
            lambda: len(self.world.run(*words, status=None).stdout.split())
            == len(self.world.run(*paused, status=None).stdout.split())
            == count,
            SECONDS,
        )

    def warm(self, wanted: bool) -> None:
        """Let the next disposables go on from the image, or boot."""
        self.world.run("qvm-features", TEMPLATE, "casemate-warm", "1" if wanted else "")

    def one_from_the_image(self) -> tuple[float, float]:
        """MiB and processor seconds of a disposable's own QEMU, when it waits."""
        names = self.world.run(
            "qvm-ls", "--raw-data", "--fields", "name", "--internal", "y", "--paused"
        ).stdout.decode()
        (pid,) = [pid for pid, name in machines_of(self.world.settings).items() if name == names.split()[0]]
        memory = re.search(r"Private_Dirty:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
        assert memory is not None
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(memory[1]) / 1024, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tool(self) -> None:
        """A call by the tool."""
        done = self.world.run("qvm-run", "--pass-io", f"--dispvm={TEMPLATE}", "echo hi")
        assert done.stdout == b"hi\n"

    def socket(self) -> None:
        """The same by a program that talks to the sockets itself; the disposable is removed later."""
        name = self.qubes.call("admin.vm.CreateDisposable", "", TEMPLATE)
        self.qubes.call("admin.vm.Start", "", name)
        assert caller.shell(self.world.settings.link_socket(name), "echo hi") == b"hi\n"
        self.made = name

    def remove(self) -> None:
        """Remove what ``socket`` has made, and wait for that."""
        self.qubes.call("admin.vm.Kill", "", self.made)
        wait_for(lambda: self.made not in self.world.qubes(), SECONDS)

    def run(self) -> list[figures.Row]:
        """All rows."""
        running = self.world.settings.link_socket("work")
        cold, image, warm, tool, call, gone, own = [], [], [], [], [], [], []
        for number in range(ROUNDS):
            PROGRESS.write(f"round {number + 1} of {ROUNDS}\n")
            self.waiting(0)
            self.warm(False)
            cold.append(timed(self.tool))
            self.warm(True)
            image.append(timed(self.tool))
            self.waiting(2)
            own.append(self.one_from_the_image())
            tool.append(timed(self.tool))
            self.waiting(2)
            warm.append(timed(self.socket))
            gone.append(timed(self.remove))
            call.append(timed(lambda: caller.shell(running, "echo hi")))
        boot = figures.middle(cold)

        def both(values: Sequence[float]) -> str:
            return f"{figures.seconds(figures.middle(values))}, {figures.seconds(figures.percentile(values, 95))}"

        how = (
            f"`qvm-run --pass-io --dispvm={TEMPLATE} 'echo hi'` as a process until its end, {ROUNDS} times each: none "
            "waits and the disposable boots; none waits and it goes on from the warm image; two wait."
        )
        row, at_call = figures.Row, figures.middle(call)
        return [
            row("`qvm-run --dispvm`, it boots, p50", figures.seconds(boot), how=how),
            row(
                "`qvm-run --dispvm`, from a warm image, p50 and p95", both(image), f"it boots {figures.seconds(boot)}",
                f"{figures.middle(image) / boot:.2f}", how=how,
            ),
            row(
                "`qvm-run --dispvm`, some wait, p50 and p95", both(tool), f"it boots {figures.seconds(boot)}",
                f"{figures.middle(tool) / boot:.2f}", how=how,
            ),
            row(
                "the same at the sockets, p50 and p95", both(warm), f"a running qube {figures.seconds(at_call)}",
                f"{figures.middle(warm) / at_call:.1f}",
                how="admin.vm.CreateDisposable, admin.vm.Start and the call, from one process; beside it the same call "
                "to a qube that runs.",
            ),
            row(
                "a waiting one's own memory; its start's processor time",
                f"{figures.middle([one[0] for one in own]):.0f} MiB; {figures.middle([one[1] for one in own]):.2f} s",
                how="Private_Dirty of /proc/PID/smaps_rollup and the times of /proc/PID/stat, of its QEMU.",
            ),
            row(
                "kill and removal, p50", figures.seconds(figures.middle(gone)),
                how="admin.vm.Kill until the disposable is in no list. Nobody who uses `qvm-run` waits for it.",
            ),
        ]  # fmt: skip


def _rows(world: World) -> list[figures.Row]:
    world.run("casemate", "template", "build", timeout=1800)
    world.run("qvm-create", "--label", "blue", "work")
    world.run("qvm-start", "work")
    world.run("qvm-create", "--label", "red", "--prop", "template_for_dispvms=True", TEMPLATE)
    world.run("qvm-features", TEMPLATE, "preload-dispvm-delay", "0")
    world.run("casemate", "warm", "build", TEMPLATE, timeout=SECONDS)
    return Bench(world).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0."""
    return of_world.main(__doc__ or "", "disposables", _rows, argv)


if __name__ == "__main__":
    sys.exit(main())
