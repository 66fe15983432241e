"""What packages of others plug in: found by entry point, and never able to break or replace what is ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate import devices as device_classes
from casemate.storage import drivers

OTHERS = """
from casemate.devices.device_class import DeviceClass
from casemate.storage.driver import DIR_PATH, Driver

def _open(opening):
    raise NotImplementedError

DRIVER = Driver("others", "Volumes of somebody else.", (DIR_PATH,), _open, aliases=("qcow2",))
NOT_A_DRIVER = object()
CAMERA = DeviceClass("camera", "Cameras.", _open, ("video4linux",))
BLOCK = DeviceClass("block", "Disks of somebody else.", _open, ("block",))
"""


def install(directory: Path, group: str, points: str) -> None:
    """What pip leaves of an installed package: its module and its metadata."""
    (directory / "casemate_others.py").write_text(OTHERS)
    metadata = directory / "casemate_others-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: casemate-others\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}\n")


@pytest.fixture(autouse=True)
def forget_the_package() -> Iterator[None]:
    """Each test imports its own copy."""
    yield
    sys.modules.pop("casemate_others", None)


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


def test_a_device_class_of_another_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = device_classes.load()
    install(tmp_path, device_classes.GROUP, "camera = casemate_others:CAMERA\nblock = casemate_others:BLOCK")
    monkeypatch.syspath_prepend(tmp_path)
    found = device_classes.load()
    assert found["camera"].doc == "Cameras." and list(found) == sorted(found)
    assert found["block"] is ours["block"], "a name of ours stays ours"
