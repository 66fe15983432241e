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
    world.run("qvm-create", "--label", "red", "sized")
    for memory, said in (("10", b"10 MiB of memory are too little"), ("1000000", b"needs 1000000 MiB of memory")):
        world.run("qvm-prefs", "sized", "memory", memory)
        done = world.run("qvm-start", "sized", status=1)
        assert said in done.stderr and b"property memory" in done.stderr, done.stderr
    world.run("qvm-remove", "-f", "sized")
