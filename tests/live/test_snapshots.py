"""Snapshots of running qubes on real machines: kept while nothing runs, and each that goes on is one of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.live.test_fork import base, counts, end, parent
from tests.live.test_json import check
from tests.live.world import World

__all__ = ["base", "parent"]  # fixtures

SECONDS = 240


@pytest.fixture(autouse=True)
def nothing_stays(world: World) -> Iterator[None]:
    yield
    for one in kept(world):
        world.run("casemate", "snapshot", "drop", str(one["name"]))
    assert not layers(world)


def kept(world: World) -> list[dict[str, object]]:
    found = check("casemate snapshot list", world.run("casemate", "snapshot", "list", "--json").stdout.decode())
    assert isinstance(found, list)
    return found


def layers(world: World) -> list[Path]:
    """Layers of disks that are no warm image's."""
    images = {int(path.name, 16) for path in (world.settings.state / "warm").iterdir() if path.name[0] != "."}
    found = (world.settings.state / "pools").glob("*/.warm-*")
    return [path for path in found if int(path.name.removeprefix(".warm-"), 16) not in images]


def resume(world: World, name: str, count: int = 1) -> list[str]:
    return world.run("casemate", "snapshot", "resume", name, "-n", str(count), timeout=SECONDS).stdout.decode().split()


def test_it_outlives_its_qube_and_the_daemon(world: World, parent: str) -> None:
    world.inside(parent, "dd if=/dev/urandom of=large bs=64K count=64 2> /dev/null; sha256sum large > sum; sync")
    world.run("qvm-tags", parent, "add", "kept")
    world.run("casemate", "snapshot", "take", parent, "ready")
    count = int(world.inside(parent, "cat /tmp/count"))
    assert counts(world, parent), "the qube goes on"
    (one,) = kept(world)
    assert (one["name"], one["qube"], one["base"]) == ("ready", parent, "forks")
    world.inside(parent, "rm large sum; echo changed > note; sync")
    world.run("qvm-kill", parent)
    world.kill_daemon()

    names = resume(world, "ready", 2)
    for name in names:
        # The program goes on, from where it was when the snapshot was taken or a moment before.
        assert int(world.inside(name, "cat /tmp/count")) > 0
        assert counts(world, name)
        assert world.inside(name, "cat note; hostname; qubesdb-read /name") == f"of the first\n{name}\n{name}"
        assert world.inside(name, "sha256sum -c sum") == "large: OK"
        assert abs(int(world.inside(name, "date +%s")) - time.time()) <= 5
        assert "kept" in world.run("qvm-tags", name, "list").stdout.decode().split()
    numbers = [world.inside(name, "od -An -tx1 -N16 /dev/urandom") for name in names]
    assert len(set(numbers)) == 2, numbers
    late = resume(world, "ready")
    assert int(world.inside(late[0], "cat /tmp/count")) < count + 20 * SECONDS
    world.run("casemate", "snapshot", "drop", "ready")
    assert not kept(world)
    for name in (*names, *late):
        assert counts(world, name), "what went on from it goes on without it"
        assert world.inside(name, "sha256sum -c sum") == "large: OK"
    end(world, *names, *late)


def test_what_is_refused_says_why(world: World, parent: str) -> None:
    def refused(*words: str) -> str:
        return world.run("casemate", "snapshot", *words, status=1).stderr.decode()

    assert "no name of a snapshot" in refused("take", parent, "a/b")
    assert "There is no snapshot 'none'" in refused("resume", "none")
    assert "There is no snapshot 'none'" in refused("drop", "none")
    world.run("casemate", "snapshot", "take", parent, "once")
    assert "already" in refused("take", parent, "once")
    assert "1 to 64" in refused("resume", "once", "-n", "0")
    world.run("qvm-pause", parent)
    assert "does not run" in refused("take", parent, "twice")
    world.run("qvm-unpause", parent)
    assert counts(world, parent)


@pytest.mark.parametrize("delay", [0.2, 0.6])
def test_a_killed_daemon_leaves_a_whole_one_or_none(world: World, parent: str, delay: float) -> None:
    tool = world.start("casemate", "snapshot", "take", parent, "cut")
    time.sleep(delay)
    world.kill_daemon()
    tool.communicate(timeout=SECONDS)
    wait_for(lambda: world.state(parent) == "Running", SECONDS)
    assert counts(world, parent), "the qube and its programs go on"
    if kept(world):
        (name,) = resume(world, "cut")
        assert counts(world, name)
        end(world, name)
    else:
        assert not layers(world)
    assert not list((world.settings.state / "warm").glob(".fork-*"))
