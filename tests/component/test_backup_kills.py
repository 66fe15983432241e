"""Backup and restore end at any instant, by SIGKILL: no file that looks complete, no qube that looks whole."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.component.test_backup_tools import ROOT, SECONDS, BackupShell, shell  # noqa: F401  # the fixture

ROUNDS = 200 if os.environ.get("CASEMATE_FULL") else 8


def marked(shell: BackupShell) -> dict[str, bool]:  # noqa: F811
    """The qubes that are there, and whether each has the mark of a restore."""
    found = shell.daemon.client().inventory(features=None)
    return {one["name"]: "restore-incomplete" in one["features"] for one in found}


@pytest.mark.timeout(SECONDS * 20)
def test_killed_restores(shell: BackupShell) -> None:  # noqa: F811
    content = shell.fill("work", "private", 1)
    shell.fill("lab", "private", 2)
    place = shell.backup("work", "lab")
    shell("qvm-remove -f work lab")
    tool = [str(ROOT / "bin/qvm-backup-restore"), "-y", "-q", "-p", str(shell.passphrase), str(place)]
    begin = time.monotonic()
    subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - begin
    random.seed(14)
    for number in range(ROUNDS):
        if there := [name for name in ("work", "lab") if name in shell.qubes()]:
            shell("qvm-remove -f", *there)
        with subprocess.Popen(tool, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(random.uniform(0, 1.2 * whole))
            process.kill()
        for name, incomplete in marked(shell).items():
            # Without a mark it has all of its content.
            if name == "work" and not incomplete:
                assert shell.volumes.images["work", "private"].rstrip(b"\0") == content, number
            if incomplete:
                assert "not been restored" in shell(f"qvm-features {name} prohibit-start")
    # The next one clears up and succeeds, also where the last was killed in the midst of a volume.
    shell.restore(place, "--skip-conflicting")
    assert not any(marked(shell).values())
    assert {"work", "lab"} <= set(shell.qubes())


@pytest.mark.timeout(SECONDS * 20)
def test_killed_backups(shell: BackupShell) -> None:  # noqa: F811
    shell.fill("work", "private", 1)
    directory = shell.directory / "places"
    directory.mkdir()
    tool = [str(ROOT / "bin/qvm-backup"), "-y", "-q", "-p", str(shell.passphrase)]
    begin = time.monotonic()
    subprocess.run([*tool, str(directory / "whole"), "work"], check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - begin
    random.seed(15)
    for number in range(ROUNDS):
        words = [*tool, str(directory / f"b{number}"), "work"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(random.uniform(0, 1.2 * whole))
            _kill_one(process.pid)
            process.wait(SECONDS)
        # The daemon may finish what a killed tool has begun; what is there is complete in either case.
        wait_for(lambda: not list(directory.glob(".*.partial")), SECONDS)
        assert not list(directory.glob(".*")) and not list(shell.directory.glob("spool/*"))
        for done in directory.iterdir():
            shell.verify(done)


def _kill_one(tool: int) -> None:
    """The tool, or the process that writes for it, whichever there is first in a random order."""
    writers = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"PPid:\t{os.getpid()}\n" in (path / "status").read_text()
            if ours and b"casemate.backup.job" in (path / "cmdline").read_bytes():
                writers.append(int(path.name))
        except OSError:
            continue
    victim = random.choice([tool, *writers])
    try:
        os.kill(victim, 9)
    except ProcessLookupError:
        pass
