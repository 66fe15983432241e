"""For all tests: examples of Hypothesis have no time limit, as the machine may be busy; descriptors are given back."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from casemate.streams.loop import Loop

MOST_DESCRIPTORS = 12
"""Those that what lasts for the whole run, such as a first guest, may have open from then on."""

settings.register_profile("casemate", deadline=None)
settings.load_profile("casemate")


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop of ours, closed at the end."""
    made = Loop()
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def descriptors_are_given_back() -> Iterator[None]:
    """Nothing that a module's tests opened stays open for long, or a whole run comes to thousands of descriptors.

    Objects in a cycle close theirs only when the garbage collector finds them, which in a process as large as this is
    rare.
    """
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    left = len(os.listdir("/proc/self/fd")) - before
    assert left <= MOST_DESCRIPTORS, f"{left} descriptors more than before this module"
