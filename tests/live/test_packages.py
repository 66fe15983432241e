"""What people install: built, installed, used, upgraded, removed. By itself a sample on this host, beside which nothing
changes (tests/install/sample.sh); ``CASEMATE_FULL=1``: in bare roots of Debian 12 and 13, with real qubes (deb.sh), and
the wheel in fresh environments (wheel.sh)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("CASEMATE_FULL", "") not in ("", "0")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and installs, so it needs root"),
    pytest.mark.skipif(shutil.which("dpkg-buildpackage") is None, reason="Debian's packages are built on Debian"),
]
in_full = pytest.mark.skipif(not FULL, reason="minutes for each release; CASEMATE_FULL=1")


def run(*argv: str | Path, timeout: float = 280) -> str:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=timeout)
    assert done.returncode == 0, (argv, done.stdout[-8000:], done.stderr[-4000:])
    return done.stdout


@pytest.fixture(scope="module")
def debs() -> Iterator[Path]:
    """The packages of this commit."""
    run("packaging/make-deb")
    yield ROOT / "build" / "deb"


def listed(package: Path) -> set[str]:
    return {line.split()[5].removeprefix(".") for line in run("dpkg-deb", "-c", package).splitlines()}


def test_every_file_of_ours_is_in_the_packages(debs: Path) -> None:
    files = set().union(*(listed(package) for package in debs.glob("*.deb")))
    ours = run("git", "ls-files", "src/casemate").splitlines()
    missing = {name for name in ours if f"/usr/lib/python3/dist-packages/{name.removeprefix('src/')}" not in files}
    assert not missing
    for program in (ROOT / "bin").iterdir():
        assert f"/usr/bin/{program.name}" in files and f"/usr/share/man/man1/{program.name}.1.gz" in files
        if program.name not in ("casemated", "casemate-qrexecd", "casemate-web"):
            assert f"/usr/share/bash-completion/completions/{program.name}" in files
            assert f"/usr/share/fish/vendor_completions.d/{program.name}.fish" in files
    assert "/usr/share/zsh/vendor-completions/_casemate" in files


def test_they_are_installed_used_and_removed_without_a_trace(debs: Path) -> None:
    said = run("sh", "tests/install/sample.sh", debs)
    assert said.splitlines()[-1] == "== purge left nothing else"


@in_full
def test_lintian_finds_no_error(debs: Path) -> None:
    run("lintian", "--allow-root", "--fail-on", "error", *debs.glob("*.deb"))


@in_full
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_qubes_live_through_upgrades_in_a_bare_debian(debs: Path, suite: str) -> None:
    run("packaging/make-deb", "--next")
    said = run("packaging/debian-root", suite, "sh", "tests/install/deb.sh", timeout=2300)
    assert said.splitlines()[-1] == "== with --disks nothing is left"


@in_full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_one_line_of_the_readme_is_the_first_command_on_a_bare_debian(suite: str) -> None:
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("make deb &&")]
    # Packages of another test are copied along; root has no sudo there.
    script = f"rm -rf build && {line.replace('sudo ', '')} && cd / && qvm-run --pass-io work hostname"
    said = run("packaging/debian-root", suite, "sh", "-c", script, timeout=1700)
    assert said.splitlines()[-1] == "work"


@in_full
@pytest.mark.timeout(900)
def test_the_wheel_works_in_fresh_environments() -> None:
    run("make", "test-wheel", timeout=800)
