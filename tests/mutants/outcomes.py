"""A plugin of pytest: appends the outcome of each test to the file that ``MUTANTS_OUTCOMES`` names."""

from __future__ import annotations

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write one line of JSON, ``[node id, outcome]``, for each phase of a test."""
    with open(os.environ["MUTANTS_OUTCOMES"], "a") as file:
        file.write(json.dumps([report.nodeid, report.outcome]) + "\n")
