"""For all tests: Hypothesis sets no time limit for one example, because the machine may be busy with other work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from casemate.streams.loop import Loop

settings.register_profile("casemate", deadline=None)
settings.load_profile("casemate")


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop of ours, closed at the end."""
    made = Loop()
    yield made
    made.close()
