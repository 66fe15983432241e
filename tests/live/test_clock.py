"""The time of a real qube: from a clockvm, by qvm-sync-clock there; a wild step is refused. This host's clock stays."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.live.world import World

pytestmark = pytest.mark.live

HOUR, DAY = 3600, 86400
NEAR = 300
"""Seconds that may pass between two commands of this test on a busy machine."""


@pytest.fixture
def keeper(world: World, usable: str) -> Iterator[str]:
    """A running clockvm; afterwards all clocks are right again, so that other tests find no odd time."""
    world.run("qvm-create", "--label", "red", "--prop", "memory=200", "keeper")
    world.run("qubes-prefs", "clockvm", "keeper")
    world.run("qvm-start", "keeper")
    yield "keeper"
    world.run("qubes-prefs", "-D", "clockvm")
    world.run("qvm-sync-clock", usable)
    world.run("qvm-kill", "keeper")
    world.run("qvm-remove", "-f", "keeper")


def ahead(world: World, qube: str) -> float:
    """By how many seconds the clock of a qube is ahead of this host's."""
    return int(world.inside(qube, "date +%s")) - time.time()


def set_clock(world: World, qube: str, seconds: int) -> None:
    world.inside(qube, f"date -u -s @{int(time.time()) + seconds}", user="root")


def test_a_qube_follows_the_clockvm(world: World, usable: str, keeper: str) -> None:
    assert world.inside(keeper, "ls /run/qubes-service") == "clocksync"
    for argument in ("", "+nanoseconds"):
        said = world.inside(usable, f"qrexec-client-vm '' qubes.GetDate{argument} </dev/null")
        assert said.startswith(time.strftime("%Y-", time.gmtime())) and said.endswith("+00:00")
    set_clock(world, keeper, HOUR)
    world.inside(usable, "qvm-sync-clock", user="root")
    assert abs(ahead(world, usable) - HOUR) < NEAR
    assert world.inside(usable, "qvm-sync-clock; echo $?") == "1"  # an ordinary user of the qube may not

    set_clock(world, keeper, 3 * DAY)
    assert world.inside(usable, "qvm-sync-clock 2>&1; echo $?", user="root").endswith("1")
    assert abs(ahead(world, usable) - HOUR) < NEAR
    # Without the right to set a clock, so that a fault of this tool could not set this host's.
    done = world.run("setpriv", "--bounding-set=-sys_time", "qvm-sync-clock", status=1)
    assert b"more than a day" in done.stderr and abs(ahead(world, usable) - HOUR) < NEAR
    world.inside(usable, "qvm-sync-clock --force", user="root")
    assert abs(ahead(world, usable) - 3 * DAY) < NEAR

    world.run("qubes-prefs", "-D", "clockvm")
    world.inside(usable, "qvm-sync-clock --force", user="root")
    assert abs(ahead(world, usable)) < NEAR
    set_clock(world, usable, HOUR)
    world.run("qvm-sync-clock")
    assert abs(ahead(world, usable)) < NEAR
    world.run("qubes-prefs", "clockvm", keeper)
