"""What depends on how Casemate was installed: where programs lie, what is missing, what goes when it is removed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.backup.schedule import Schedule, Schedules
from casemate.cli import backup_schedule, host_timers, interop, uninstall
from casemate.cli.schedule_time import understood
from casemate.daemon import start
from casemate.settings import OWN, Settings
from casemate.settings import ROOT as WHOLE
from casemate.store import layout
from casemate.tools_directory import tools_directory
from casemate.web import start as web_start
from tests.fakes.host_programs import HostPrograms

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


def test_what_lies_outside_of_the_state_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = HostPrograms(tmp_path / "host", monkeypatch)
    host.with_systemd()
    settings = _state(tmp_path, WHOLE)
    unit, when = backup_schedule.unit_name(settings, "nightly"), understood("daily")
    host_timers.of_host(host.root).put(unit, "a backup", when, ["true"], {})
    Schedules(settings.state).put(Schedule("nightly", when.said, when.period, 0, "systemd"))
    interop.install(host.root, None)
    away = uninstall.elsewhere(settings, host.root)
    assert [one.what for one in away] == ["the timer of nightly", "what casemate interop install has put in place"]
    assert host.written(), "showing removes nothing"
    for one in away:
        one.remove()
    assert not host.written() and set(interop.places(host.root).values()) == {"missing"}
    assert uninstall.elsewhere(settings, host.root) == []


def test_links_of_a_package_are_not_ours_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = tmp_path / "casemate-qubes-tools.list"
    packaged.write_text("/usr/bin\n/usr/bin/qubesd-query\n")
    monkeypatch.setattr(interop, "_PACKAGED", packaged)
    monkeypatch.setattr(interop, "BIN", Path("/usr/lib/casemate/bin"))
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/qubesd-query").symlink_to("../lib/casemate/bin/qubesd-query")  # as debhelper makes it
    interop.install(root, None)
    interop.remove(root)
    assert [place for place, state in interop.places(root).items() if state != "missing"] == ["usr/bin/qubesd-query"]


def _preinst(directory: Path, content: str | None) -> subprocess.CompletedProcess[str]:
    """Runs the package's preinst as its build makes it, for a store below a directory of ours."""
    store = directory / "qubes.xml"
    if content is not None:
        store.write_text(content)
    script = (ROOT / "packaging/debian/casemate.preinst").read_text()
    assert script.count("/var/lib/casemate/qubes.xml") == 1
    script = script.replace("/var/lib/casemate/qubes.xml", str(store)).replace("#FORMAT#", str(layout.FORMAT))
    return subprocess.run(["sh", "-c", script, "preinst", "upgrade", "9"], capture_output=True, text=True)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        f'<?xml version="1.0"?>\n<qubes casemate-format="{layout.FORMAT}" generation="3">\n</qubes>\n',
        '<?xml version="1.0"?>\n<qubes>\n<x casemate-format="99"/></qubes>\n',  # no attribute of the root
        '<?xml version="1.0"?>\n<qubes casemate-format="many">\n</qubes>\n',  # for the daemon to judge
    ],
)
def test_a_package_is_installed_over_a_state_that_it_knows(tmp_path: Path, content: str | None) -> None:
    done = _preinst(tmp_path, content)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_is_not_installed_over_a_newer_state(tmp_path: Path) -> None:
    done = _preinst(tmp_path, f'<?xml version="1.0"?>\n<qubes casemate-format="{layout.FORMAT + 1}"/>\n')
    assert done.returncode != 0
    assert f"newer Casemate: its format is {layout.FORMAT + 1}, this version knows {layout.FORMAT}" in done.stderr


def test_one_version_is_said_everywhere() -> None:
    import casemate

    found = {
        "pyproject.toml": re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M),
        "changelog": re.match(r"casemate \((.*)\)", (ROOT / "packaging/debian/changelog").read_text()),
    }
    assert {name: match and match[1] for name, match in found.items()} == dict.fromkeys(found, casemate.__version__)


def test_the_page_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert web_start.missing() == [], "this environment has all of it"
    monkeypatch.setattr(web_start, "OLDEST", {"uvicorn": (999, 0), "no-such-package-of-ours": (1, 2)})
    assert web_start.main() == 1
    assert "pip install 'uvicorn>=999.0' 'no-such-package-of-ours>=1.2'" in capsys.readouterr().err
