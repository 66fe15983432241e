"""What depends on how Casemate was installed: where programs lie, what is missing, what goes when it is removed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from casemate.cli import uninstall
from casemate.daemon import start
from casemate.settings import OWN, Settings
from casemate.tools_directory import tools_directory

ROOT = Path(__file__).parents[2]


def test_programs_lie_where_the_package_says() -> None:
    assert tools_directory() == ROOT / "bin" and (tools_directory() / "casemate").exists()
    debian = Path("/usr/lib/python3/dist-packages/casemate")
    assert tools_directory(debian) == Path("/usr/lib/casemate/bin")
    assert tools_directory(Path("/e/lib/python3.11/site-packages/casemate")) == Path(sys.executable).parent


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert start.missing_text() == "", "this host has all of it"
    monkeypatch.setattr(start, "NEEDED", {"no_such_module_of_ours": "python3-libvirt"})
    monkeypatch.setattr(start, "PROGRAMS", {"no-such-program-of-ours": "qemu-utils"})
    assert start.main() == 1
    said = capsys.readouterr().err
    assert "sudo apt install python3-libvirt qemu-utils" in said and "--system-site-packages" in said


def _state(base: Path, origin: str) -> Settings:
    settings = Settings(state=base / "state", run=base / "state" / "run", cache=base / "cache", origin=origin)
    for directory in (settings.state / "pools", settings.state / "policy.d", settings.run, settings.cache):
        directory.mkdir(parents=True)
    settings.store_file.write_text("<qubes/>")
    return settings


def test_disks_and_store_stay_unless_told(tmp_path: Path) -> None:
    settings = _state(tmp_path, OWN)
    assert set(uninstall.goes(settings, disks=False)) == {settings.state / "policy.d", settings.run, settings.cache}
    assert set(uninstall.goes(settings, disks=True)) == {settings.state, settings.cache}


def test_the_cache_that_others_share_stays_with_a_named_state(tmp_path: Path) -> None:
    settings = _state(tmp_path, "CASEMATE_STATE (or --state)")
    assert uninstall.goes(settings, disks=True) == [settings.state]


def test_the_purge_of_the_package_keeps_the_same_names() -> None:
    script = (ROOT / "packaging/debian/casemate.postrm").read_text()
    assert set(re.findall(r"! -name (\S+)", script)) == set(uninstall.KEPT)
