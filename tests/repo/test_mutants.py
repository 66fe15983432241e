"""Protections and the tests that hold them: no mutant is out of date, and a sample of them is killed."""

from __future__ import annotations

import datetime
import os
import random

import pytest

from tests.mutants import catalogue, run

SAMPLE = 5


def test_ids_are_unique() -> None:
    assert len(catalogue.by_id()) == len(catalogue.ALL)


@pytest.mark.parametrize("mutant", catalogue.ALL, ids=lambda mutant: mutant.id)
def test_no_mutant_is_stale(mutant: catalogue.Mutant) -> None:
    assert not catalogue.stale(mutant)
    assert mutant.tests and mutant.old != mutant.new


def test_a_sample_of_the_mutants_is_killed() -> None:
    """Others each day. The date is printed, so that a failure can be looked at on another day."""
    today = datetime.date.today().isoformat()
    fast = [mutant for mutant in catalogue.ALL if not mutant.slow and (not mutant.root or os.geteuid() == 0)]
    chosen = random.Random(today).sample(fast, SAMPLE)
    print(f"sample of {today}: python -m tests.mutants {' '.join(mutant.id for mutant in chosen)}")
    lines: list[str] = []
    verdicts = run.run(chosen, lines.append)
    assert set(verdicts.values()) == {run.KILLED}, "\n".join(lines)
