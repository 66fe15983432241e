"""A store for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.component.laws.processes import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An initial store."""
    path = tmp_path / "qubes.xml"
    assert run(path, "read").returncode == 0
    return path
