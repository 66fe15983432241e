"""``casemate backup schedule`` over the real API: a schedule is made, its command runs, its end is shown, it goes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.component.test_backup_incremental import RepositoryShell, shell
from tests.component.test_backup_tools import PASSPHRASE, ROOT, SECONDS
from tests.fakes.host_programs import HostPrograms

__all__ = ["shell"]


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> HostPrograms:
    return HostPrograms(tmp_path_factory.mktemp("host") / "host", monkeypatch)


def profile(shell: RepositoryShell, *lines: str) -> Path:
    path = shell.directory / "backup/nightly.conf"
    repository = (f"destination_path: {shell.repository}", "repository: true", "keep: {last: 1}", "include: [work]")
    path.write_text("".join(f"{line}\n" for line in (*repository, *lines)))
    return path


def scheduled(shell: RepositoryShell) -> list[str]:
    """Records in the state, and directories for them."""
    return [path.name for path in (shell.directory / "backup").iterdir() if path.name in ("schedules", "runs")]


def test_from_schedule_to_unschedule(
    shell: RepositoryShell, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = f"passphrase_text: {PASSPHRASE}"
    profile(shell, secret)
    with monkeypatch.context() as patch:
        host = HostPrograms(tmp_path_factory.mktemp("host") / "host", patch)
        host.with_systemd()
        root = ["--root", str(host.root)]
        shell("casemate backup schedule", *root, "nightly", "Mon..Fri 02:30")
        (service,) = host.units.glob("*.service")
        content = service.read_text()
        assert f'"CASEMATE_STATE={shell.directory}"' in content and PASSPHRASE not in content
        assert "nightly" in shell("casemate backup schedule") and "has not run yet" in shell.out
    # The command of the unit, as systemd would run it.
    (line,) = [line for line in content.splitlines() if line.startswith("ExecStart=")]
    program, *words = shlex.split(line.removeprefix("ExecStart="))
    assert Path(program).name == "casemate" and Path(program).exists()
    for seed in range(2):
        shell.fill("work", "private", seed)
        assert shell("casemate", *words) == "" and shell.err == ""
    assert len(shell.backups()) == 1  # the profile's rules have pruned
    assert "nightly (Mon..Fri 02:30): whole, 20" in shell("casemate status")
    (shell.repository / "config").rename(shell.directory / "away")
    shell("casemate", *words, status=1)
    assert "nightly (Mon..Fri 02:30): FAILED 20" in shell("casemate status")
    (shell.directory / "away").rename(shell.repository / "config")
    record = shell.directory / "backup/schedules/nightly.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "since": 0}))
    last = shell.directory / "backup/runs/nightly.json"
    last.write_text(json.dumps({**json.loads(last.read_text()), "whole": 0}))
    assert "nightly (Mon..Fri 02:30): OVERDUE: FAILED 20" in shell("casemate status")
    shell("casemate", *words)
    assert "nightly (Mon..Fri 02:30): whole, 20" in shell("casemate status")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(host.programs))
        patch.setenv("XDG_CONFIG_HOME", str(host.root / "home"))
        shell("casemate backup unschedule", *root, "nightly")
        shell("casemate backup unschedule", *root, "nightly", status=1)
    assert "not scheduled" in shell.err and host.written() == [] and scheduled(shell) == []
    assert "Scheduled backups" not in shell("casemate status")
    shell("casemate", *words)  # without a schedule nothing is recorded
    assert scheduled(shell) == []


def test_what_is_refused_writes_nothing(shell: RepositoryShell, host: HostPrograms) -> None:
    root = ["--root", str(host.root)]
    profile(shell, f"passphrase_text: {PASSPHRASE}")
    shell("casemate backup schedule", *root, "nightly", "daily", status=1)
    assert "neither systemd nor cron" in shell.err
    host.with_systemd()
    for name, when, said in (
        ("missing", "daily", "no backup profile 'missing'"),
        ("nightly", "nonsense", "does not understand 'nonsense'"),
        ("nightly", "daily\nUser=root", "is no time"),
        ("../nightly", "daily", ""),
    ):
        shell("casemate backup schedule", *root, name, when, status=1)
        assert said in shell.err
    shell("casemate backup schedule", *root, "nightly", status=2)
    profile(shell)
    shell("casemate backup schedule", *root, "nightly", "daily", status=1)
    assert "has no passphrase" in shell.err
    assert host.asked() == [] and host.written() == [] and scheduled(shell) == []


def test_a_killed_run_is_told(shell: RepositoryShell, host: HostPrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(shell, f"passphrase_text: {PASSPHRASE}")
    host.with_systemd()
    shell("casemate backup schedule", "--root", str(host.root), "nightly", "daily")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # where the daemon of this process finds borg
    shell.volumes.images["work", "private"] = os.urandom(300 << 20)
    run = subprocess.Popen(
        [ROOT / "bin/casemate", "-q", "backup", "run", "nightly"],
        env={**os.environ, "CASEMATE_STATE": str(shell.directory)},
    )
    try:
        wait_for(lambda: (shell.directory / "backup/runs/nightly.json").exists(), SECONDS)
        assert "nightly (daily): running since 20" in shell("casemate status")
        shell("casemate backup unschedule", "nightly", status=1)
        assert "is running" in shell.err
    finally:
        run.kill()
        run.wait()
    assert "nightly (daily): BROKEN OFF: the run of 20" in shell("casemate status")


def test_by_cron_and_then_by_systemd(shell: RepositoryShell, host: HostPrograms) -> None:
    root = ["--root", str(host.root)]
    profile(shell, "passphrase_vm: work")
    host.with_cron()
    shell("casemate backup schedule", *root, "nightly", "daily")
    assert "@daily" in host.table.read_text() and "backup run nightly" in host.table.read_text()
    host.with_systemd()
    shell("casemate backup schedule", *root, "nightly", "weekly")
    assert not host.table.exists() and len(host.written()) == 2
    assert "weekly" in shell("casemate backup schedule") and "cron" not in shell.out
