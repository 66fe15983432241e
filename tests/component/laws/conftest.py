"""A store, or a whole daemon, for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import short_directory
from tests.component.laws.daemon import Lab
from tests.component.laws.processes import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An initial store."""
    path = tmp_path / "qubes.xml"
    assert run(path, "read").returncode == 0
    return path


@pytest.fixture
def lab() -> Iterator[Lab]:
    with short_directory("lab") as directory:
        made = Lab(directory)
        try:
            yield made
        finally:
            made.close()
