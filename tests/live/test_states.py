"""What is asked of qubes in odd states: paused ones, and ones whose memory cannot do."""

from __future__ import annotations

import time

import pytest

from tests.live.world import World

pytestmark = pytest.mark.live


def test_the_clock_is_right_after_a_pause(world: World, usable: str) -> None:
    """The guest's time stands still while it is paused; calls that come after it must not see the old time."""
    world.run("qvm-pause", usable)
    time.sleep(8)  # the length of the pause is what is tested
    world.run("qvm-unpause", usable)
    behind = time.time() - float(world.inside(usable, "date +%s.%N"))
    assert abs(behind) < 4, f"{behind:.1f} s behind; half of the pause at most"


def test_a_paused_qube_refuses_and_says_why(world: World, usable: str) -> None:
    world.run("qvm-pause", usable)
    try:
        for words in (("qvm-shutdown", "--wait", usable), ("qvm-shutdown", usable), ("qvm-restart", usable)):
            done = world.run(*words, status=None)
            assert done.returncode != 0, words
            assert b"is paused, so it cannot shut down" in done.stderr, words
            assert world.state(usable) == "Paused", words
        for words in (("qvm-run", "-p", usable, "echo on"), ("qvm-run", "-n", usable, "true")):
            done = world.run(*words, status=1, timeout=60)  # it waited for ever
            assert f"{usable} is paused, so it does not answer".encode() in done.stderr, words
    finally:
        world.run("qvm-unpause", usable)
    assert world.inside(usable, "echo on") == "on"


def test_memory_that_cannot_do_is_refused_in_words(world: World, usable: str) -> None:
    """When it is set; a start says the same of a collection that came from elsewhere (test_start_steps.py)."""
    world.run("qvm-create", "--label", "red", "sized")
    for memory, said in (("10", b"10 MiB of memory are too little"), ("1000000", b"so no qube can have 1000000")):
        assert said in world.run("qvm-prefs", "sized", "memory", memory, status=1).stderr
    world.run("qvm-prefs", "sized", "memory", "80")
    world.run("qvm-start", "sized")
    world.run("qvm-kill", "sized")
    assert b"must have one; there are" in world.run("qubes-prefs", "-D", "default_kernel", status=1).stderr
    assert b"no such kernel" in world.run("qvm-prefs", "sized", "kernel", "nosuch", status=1).stderr
    world.run("qvm-remove", "-f", "sized")
