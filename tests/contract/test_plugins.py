"""What packages of others plug in: found by entry point, and never able to break or replace what is ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.storage import drivers

OTHERS = """
from casemate.storage.driver import DIR_PATH, Driver

def _open(opening):
    raise NotImplementedError

DRIVER = Driver("others", "Volumes of somebody else.", (DIR_PATH,), _open, aliases=("qcow2",))
NOT_A_DRIVER = object()
"""


def install(directory: Path, group: str, points: str) -> None:
    """What pip leaves of an installed package: its module and its metadata."""
    (directory / "casemate_others.py").write_text(OTHERS)
    metadata = directory / "casemate_others-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: casemate-others\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}\n")


def test_a_driver_of_another_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = drivers.load()
    install(tmp_path, drivers.GROUP, "others = casemate_others:DRIVER")
    monkeypatch.syspath_prepend(tmp_path)
    found = drivers.load()
    assert found["others"].doc == "Volumes of somebody else."
    assert found["qcow2"] is ours["qcow2"], "a name of ours stays ours"
    assert "others" not in {driver.name for driver in drivers.built_in()}


def test_a_broken_driver_is_logged_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = drivers.load()
    install(tmp_path, drivers.GROUP, "a = casemate_others:NOT_A_DRIVER\nb = casemate_others:MISSING\nc = no_module:X")
    monkeypatch.syspath_prepend(tmp_path)
    assert drivers.load() == ours
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
