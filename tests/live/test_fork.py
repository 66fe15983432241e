"""Forks of running qubes, on real machines: memory, programs and files go on in each, and each is one of its own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from casemate.engine.links import Links
from casemate.host.process import Runner
from tests.builders import wait_for
from tests.live.world import World

SECONDS = 240
FULL = bool(os.environ.get("CASEMATE_FULL"))
COUNTER = "(i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 0.05; done) > /dev/null 2>&1 &"
"""A program that goes on by itself, and what it has come to in memory."""
RANDOM = """python3 -IS -c '
import os, time
with open("/tmp/random", "w", buffering=1) as file:
    while True:
        file.write(os.urandom(16).hex() + chr(10))
        time.sleep(0.001)
' > /dev/null 2>&1 &"""
"""A program that takes random numbers all the time. One that it gets in two forks was got before they were renewed."""


@pytest.fixture(scope="module")
def base(world: World) -> Iterator[str]:
    """A disposable template with a warm image."""
    world.run("qvm-create", "--label", "red", "--prop", "template_for_dispvms=True", "forks")
    world.run("qvm-features", "forks", "casemate-warm", "1")
    world.run("qvm-features", "forks", "preload-dispvm-max", "0")
    world.run("casemate", "warm", "build", "forks", timeout=SECONDS)
    yield "forks"
    world.run("casemate", "warm", "drop", "--all")
    world.run("qvm-remove", "-f", "forks")


@pytest.fixture
def parent(world: World, base: str) -> Iterator[str]:
    """A running disposable that went on from an image, with a program and files of its own."""
    world.run("qvm-create", "--class", "DispVM", "--template", base, "--label", "red", "first")
    world.run("qvm-start", "first")
    world.inside("first", f"echo of the first > note; {COUNTER}")
    yield "first"
    world.run("qvm-kill", "first", status=None)
    wait_for(lambda: world.state("first") == "Halted", SECONDS)
    world.run("qvm-remove", "-f", "first")


def fork(world: World, name: str, count: int = 1) -> list[str]:
    return world.run("casemate", "fork", name, "-n", str(count)).stdout.decode().split()


def end(world: World, *names: str) -> None:
    for name in names:
        world.run("qvm-kill", name, status=None)
    wait_for(lambda: not {*names} & {*world.qubes(), *world.machines()}, SECONDS)


def nothing_is_left(world: World) -> None:
    """No copy and no layer of one."""
    wait_for(lambda: not list((world.settings.state / "warm").glob(".fork-*")), SECONDS)
    layers = list((world.settings.state / "pools").glob("*/.warm-*"))
    images = {path.name for path in (world.settings.state / "warm").iterdir()}
    assert {f"{int(path.name.removeprefix('.warm-'), 16):016x}" for path in layers} <= images


def counts(world: World, name: str) -> bool:
    """Whether the program goes on."""
    before = int(world.inside(name, "cat /tmp/count") or 0)
    wait_for(lambda: int(world.inside(name, "cat /tmp/count") or 0) > before, SECONDS)
    return before > 0


def test_forks_go_on_from_where_the_qube_is(world: World, parent: str) -> None:
    world.inside(parent, f"echo tags are kept; qubesdb-read /name > /dev/null; {RANDOM} sleep 0.5")
    world.run("qvm-tags", parent, "add", "worker")
    names = fork(world, parent, 2)
    assert len(set(names)) == 2 and parent not in names
    for name in (parent, *names):
        assert counts(world, name)
        assert world.inside(name, "cat note; hostname; qubesdb-read /name") == f"of the first\n{name}\n{name}"
        assert abs(int(world.inside(name, "date +%s")) - time.time()) <= 5
    assert world.run("qvm-tags", names[0], "list").stdout.decode().split().count("worker") == 1
    # What each writes is its own.
    for name in (parent, *names):
        world.inside(name, f"echo {name} > mine; sync")
    for name in (parent, *names):
        assert world.inside(name, "cat mine") == name
    # The numbers that a program had got by then are in all of them. After that no two have one in common.
    said = {name: world.inside(name, "cat /tmp/random").split() for name in (parent, *names)}
    common = set(said[parent]) & set(said[names[0]])
    assert common, "this tested nothing: the program had got no number before the forks were made"
    assert set(said[names[0]]) & set(said[names[1]]) == common
    assert all(len(numbers) > len(common) for numbers in said.values()), "this tested nothing: the program stands still"
    end(world, *names)
    nothing_is_left(world)


def test_no_two_forks_have_a_number_in_common(world: World, parent: str) -> None:
    names = fork(world, parent, 20 if FULL else 3)
    words = "cat /proc/sys/kernel/random/uuid; od -An -tx1 -N16 /dev/urandom | tr -d ' '; mktemp -u; "
    words += "python3 -IS -c 'import os, random, ssl; print(random.random(), hash(\"x\"), ssl.RAND_bytes(8).hex())'"
    said = [word for name in (parent, *names) for word in world.inside(name, words).split()]
    assert len(said) == 6 * (1 + len(names)) == len(set(said)), sorted(said)
    end(world, *names)


def test_a_fork_can_be_forked(world: World, parent: str) -> None:
    names = fork(world, parent)
    world.inside(names[0], "echo of the second >> note; mkdir dir; echo x > dir/file")
    names += fork(world, names[0])
    assert counts(world, names[1])
    assert world.inside(names[1], "cat note dir/file; hostname") == f"of the first\nof the second\nx\n{names[1]}"
    assert world.inside(parent, "cat note; ls") == "of the first\nnote"
    end(world, names[0])  # what the second shares with it stays
    assert world.inside(names[1], "cat dir/file; cat /usr/bin/python3 | wc -c").startswith("x\n")
    end(world, names[1])
    nothing_is_left(world)


def test_a_qube_that_keeps_its_data_is_forked_with_it(world: World, base: str) -> None:
    """It has a copy of its image's memory, or has booted; its private disk is its own."""
    world.run("qvm-start", base, timeout=SECONDS)
    world.inside(base, f"echo kept > data; {COUNTER}")
    (name,) = fork(world, base)
    assert counts(world, name)
    world.inside(name, "cat data; echo lost >> data")
    world.inside(base, "echo more >> data")
    assert world.inside(name, "cat data") == "kept\nlost"
    world.run("qvm-shutdown", "--wait", base)
    assert world.inside(name, "cat data") == "kept\nlost", "its disk lies over that of the other"
    end(world, name)
    world.run("qvm-start", base, timeout=SECONDS)
    assert world.inside(base, "cat data") == "kept\nmore"
    world.run("qvm-shutdown", "--wait", base)


def test_a_fork_reaches_no_more_than_the_qube(world: World, parent: str) -> None:
    world.run("qvm-firewall", parent, "reset")
    world.run("qvm-firewall", parent, "del", "--rule-no", "0")
    world.run("qvm-firewall", parent, "add", "accept", "dsthost=192.0.2.7", "proto=tcp", "dstports=443")
    (name,) = fork(world, parent)
    rules = world.run("qvm-firewall", "--raw", parent, "list").stdout
    assert b"192.0.2.7" in rules and world.run("qvm-firewall", "--raw", name, "list").stdout == rules
    for prop in ("netvm", "default_dispvm", "memory", "vcpus"):
        assert world.run("qvm-prefs", name, prop).stdout == world.run("qvm-prefs", parent, prop).stdout, prop
    end(world, name)


def test_what_cannot_be_forked_says_why(world: World, parent: str, usable: str, base: str) -> None:
    def refused(name: str, *words: str) -> str:
        done = world.run("casemate", "fork", name, *words, status=None)
        assert done.returncode != 0 and done.stdout == b""
        return done.stderr.decode()

    assert "template_for_dispvms" in refused(usable)
    assert "does not run" in refused(base)
    assert "1 to 64" in refused(parent, "-n", "0") and "1 to 64" in refused(parent, "-n", "65")
    assert "nobody" in refused("nobody")
    world.run("qvm-pause", parent)
    assert "does not run" in refused(parent)
    world.run("qvm-unpause", parent)
    assert counts(world, parent)
    nothing_is_left(world)


def test_a_daemon_killed_after_it_stopped_the_programs_and_before_the_machine(world: World, parent: str) -> None:
    left = world.settings.state / "warm" / ".fork-0123456789abcdef"
    left.mkdir()
    (left / "qube").write_text(parent)
    told = asyncio.run(Links(world.settings, Runner()).ask(parent, 60, op="freeze", on=True))
    assert told["done"] is True
    still = world.inside(parent, "cat /tmp/count")
    assert world.inside(parent, "sleep 1; cat /tmp/count") == still, "this tested nothing: its programs go on"
    world.kill_daemon()
    wait_for(lambda: world.state(parent) == "Running", SECONDS)  # calls alone need no daemon, so they start none
    assert counts(world, parent)
    nothing_is_left(world)


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.5, 0.8] if FULL else [0.15, 0.4])
def test_kill_of_the_daemon_while_it_forks(world: World, parent: str, delay: float) -> None:
    known = set(world.qubes())
    tool = world.start("casemate", "fork", parent, "-n", "2")
    time.sleep(delay)
    world.kill_daemon()
    tool.communicate(timeout=SECONDS)
    # Whatever had been done by then: the qube goes on, its programs too, and no fork is half there.
    wait_for(lambda: world.state(parent) == "Running", SECONDS)
    assert counts(world, parent)
    made = set(world.qubes()) - known
    assert made <= set(world.machines())
    for name in made:
        assert world.inside(name, "hostname") == name
    end(world, *made)
    nothing_is_left(world)
