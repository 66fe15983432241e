"""One installation for all live tests of a run: a template, and qubes that tests make and remove."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.builders import short_directory
from tests.live.world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A state with the lean template."""
    # A short path: the names of unix sockets have a limit.
    with short_directory() as directory:
        made = World(directory)
        try:
            made.run("casemate", "template", "build", timeout=1800)
            # A warm image is made in the background, by a qube that tests would find. Tests of images say otherwise for
            # their own qubes; CASEMATE_TEST_WARM=1 leaves images on for all tests.
            if not os.environ.get("CASEMATE_TEST_WARM"):
                made.without_images()
            yield made
        finally:
            made.clean()


@pytest.fixture(scope="session")
def work(world: World) -> str:
    """A running qube that tests share; they leave it running and usable."""
    world.run("qvm-create", "--label", "blue", "work")
    world.run("qvm-start", "work")
    return "work"


@pytest.fixture
def usable(world: World, work: str) -> str:
    """The shared qube, started again if a test before had it stopped."""
    if world.state(work) != "Running":
        world.run("qvm-start", work)
    return work
