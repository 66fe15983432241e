"""Each target of tests/fuzz with some random bytes, with good bytes that were damaged, and with all that was found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

FOUND = Path(__file__).parents[1] / "fuzz" / "found"


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_and_damaged_bytes(name: str, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        TARGETS[name](data.draw(st.binary(max_size=400)))
        return
    good = bytearray(data.draw(st.sampled_from(seeds(name))))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(good)))
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    TARGETS[name](bytes(good))


def test_what_was_found_once() -> None:
    found = sorted(FOUND.glob("*/*"))
    assert {path.parent.name for path in found} <= TARGETS.keys()
    for path in found:
        TARGETS[path.parent.name](path.read_bytes())
