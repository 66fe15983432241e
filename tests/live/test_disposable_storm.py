"""Many disposables, one after the other and at once: none is lost, and nothing of any is left. ``CASEMATE_FULL=1``: a
thousand, and twenty at once. Those that boot and those that go on from a warm image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casemate.cli.clean import machines_of
from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live

FULL = os.environ.get("CASEMATE_FULL", "") not in ("", "0")
IN_A_ROW, AT_ONCE = (1000, 20) if FULL else (3, 4)
WARM_IN_A_ROW, WARM_AT_ONCE = (1000, 20) if FULL else (8, 8)
GROWTH_KIB = 32 << 10
"""What the daemon may be larger afterwards: memory that Python keeps for later, not a part of each disposable."""


@pytest.fixture(params=[False, True], ids=["boot", "warm"])
def warm(request: pytest.FixtureRequest) -> bool:
    """Whether the disposables go on from a warm image."""
    return bool(request.param)


@pytest.fixture
def base(world: World, warm: bool) -> Iterator[str]:
    """A disposable template of which none waits."""
    world.run("qvm-create", "--label", "red", "--prop", "template_for_dispvms=True", "--prop", "memory=200", "storm")
    world.run("qvm-features", "storm", "preload-dispvm-max", "0")
    world.run("qvm-features", "storm", "casemate-warm", "1" if warm else "")
    if warm:
        world.run("casemate", "warm", "build", "storm")
    yield "storm"
    world.run("casemate", "warm", "drop", "--all")
    wait_for(lambda: world.run("qvm-remove", "-f", "storm", status=None).returncode == 0)


def left(world: World) -> dict[str, object]:
    """Everything that a disposable has while it lives."""
    state, daemon = world.settings.state, world.daemon_pid()
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(world.settings.prefix.encode() in word for word in words):
            processes.append(path.parent.name)
    return {
        "qubes": sorted(world.qubes()),
        "machines": sorted(machines_of(world.settings).values()),
        "processes": sorted(processes),
        "files": sorted(
            str(path.relative_to(state))
            for path in state.rglob("*")
            if not path.name.startswith(("qubes.xml", "casemated.log"))
        ),
        "descriptors": len(os.listdir(f"/proc/{daemon}/fd")),
        "descriptors of the room": len(os.listdir(f"/proc/{world.room_pid()}/fd")),
    }


def resident(pid: int) -> int:
    """KiB of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * (os.sysconf("SC_PAGESIZE") >> 10)


def settled(world: World, before: dict[str, object]) -> None:
    """Wait until all is as it was; says what is not."""
    now: dict[str, object] = {}

    def same() -> bool:
        now.update(left(world))
        return now == before

    try:
        wait_for(same, 120)
    except AssertionError:
        assert now == before


def test_many_disposables_leave_nothing(world: World, base: str, warm: bool) -> None:
    in_a_row, at_once = (WARM_IN_A_ROW, WARM_AT_ONCE) if warm else (IN_A_ROW, AT_ONCE)

    def one(number: int) -> None:
        done = world.run("qvm-run", "--pass-io", f"--dispvm={base}", f"echo disposable {number}", timeout=600)
        assert done.stdout == f"disposable {number}\n".encode()

    one(0)  # what is made once is there
    wait_for(lambda: "disp" not in str(left(world)), 60)
    before, size = left(world), resident(world.daemon_pid())
    for number in range(1, in_a_row + 1):
        one(number)
    settled(world, before)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, range(at_once)))
    settled(world, before)
    assert resident(world.daemon_pid()) < size + GROWTH_KIB
