"""qvm-backup and qvm-backup-restore over the real API with volumes in memory: round trips, conflicts, damage, kills.

One file although it is long: its tests share one shell on one daemon.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from casemate.backup.container import Cost
from casemate.cli.json_schemas import schemas
from casemate.client import restore as restore_module
from casemate.engine import backups
from casemate.wire.errors import CasemateError
from tests import backup_samples as samples
from tests.builders import wait_for
from tests.fakes.daemon import FakeDaemon
from tests.fakes.shell import Shell, found_by_tools

PASSPHRASE = "five words that nobody knows"
SECONDS = 60
ROOT = Path(__file__).parents[2]
OWN = restore_module.NOT_CLONED | {"backup_timestamp", "start_time", "gateway", "gateway6"}
"""Properties that are not the same after a restore."""


class BackupShell(Shell):
    """Runs tools on qubes whose volumes have content."""

    def __init__(self, daemon: FakeDaemon, capture: pytest.CaptureFixture[str], directory: Path) -> None:
        super().__init__(daemon, capture)
        self.volumes = daemon.parts.volumes
        self.directory = directory
        self.passphrase = directory / "passphrase"
        self.passphrase.write_text(PASSPHRASE + "\n")

    def furnish(self) -> None:
        """A template and two qubes."""
        self("qvm-create -C TemplateVM -l black deb")
        self("qubes-prefs default_template deb")
        self("qvm-create -l blue work")
        self("qvm-create -l red lab")

    def fill(self, qube: str, volume: str, seed: int) -> bytes:
        made = random.Random(seed)
        data = made.randbytes(200_000) + bytes(100_000) + made.randbytes(13)
        self.volumes.images[qube, volume] = data
        return data

    def sample(self, name: str) -> Path:
        """A backup of the samples, and its passphrase instead of ours."""
        place = self.directory / name
        place.write_bytes(samples.files()[name])
        self.passphrase.write_text(samples.manifest()[name]["passphrase"])
        return place

    def backup(self, *words: str, status: int = 0) -> Path:
        place = self.directory / f"backup-{len(list(self.directory.glob('backup-*')))}"
        self("qvm-backup -y -p", str(self.passphrase), *words[:0], str(place), *words, status=status)
        return place

    def restore(self, place: Path, *words: str, status: int = 0) -> str:
        options = [word for word in words if word.startswith("-")]
        names = [word for word in words if not word.startswith("-")]
        return self("qvm-backup-restore -y -p", str(self.passphrase), *options, str(place), *names, status=status)

    def verify(self, place: Path, status: int = 0) -> str:
        return self("qvm-backup-restore --verify-only -p", str(self.passphrase), str(place), status=status)

    def inventory(self) -> dict[str, Any]:
        """All that the API tells of the qubes, but for what belongs to one qube alone."""
        found = {}
        for one in self.daemon.client().inventory(None, None, True):
            properties = {
                key: value for key, value in one["properties"].items()
                if key not in OWN and not key.startswith("visible_")
            }  # fmt: skip
            found[one["name"]] = {**one, "properties": properties}
        return found

    def qubes(self) -> list[str]:
        return self("qvm-ls --raw-list").split()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[BackupShell]:
    monkeypatch.setattr(backups, "DEFAULT_COST", Cost(10))  # the usual cost takes half a second for each file
    with found_by_tools(tmp_path, monkeypatch, request_seconds=SECONDS) as daemon:
        found = BackupShell(daemon, capsys, tmp_path)
        found.furnish()
        yield found


def test_what_was_backed_up_comes_back(shell: BackupShell) -> None:
    shell("qvm-create -l purple -C StandaloneVM alone")
    shell("qvm-create -l orange net --prop provides_network=True --prop netvm=")
    shell("qvm-prefs work netvm net")
    shell("qvm-prefs work memory 512")
    shell("qvm-prefs lab template_for_dispvms True")
    shell("qvm-create -l gray -C DispVM -t lab disp")
    shell("qvm-features work menu-favourites", "a b")
    shell("qvm-tags work add secret")
    shell("qvm-firewall work add accept dsthost=192.0.2.0/24 proto=tcp dstports=443-445")
    shell("qvm-firewall work add drop dsthost=example.org")
    shell("qvm-firewall work add accept specialtarget=dns expire=+1000")
    shell("qvm-notes work --set", "first line\nsecond: ü\n")
    rules, notes = shell("qvm-firewall --raw work list"), shell("qvm-notes --print work")
    before = shell.inventory()
    content = {
        (qube, volume): shell.fill(qube, volume, seed)
        for seed, (qube, volume) in enumerate([
            ("deb", "root"), ("deb", "private"), ("work", "private"), ("lab", "private"), ("net", "private"),
            ("alone", "root"), ("alone", "private"),
        ])
    }  # fmt: skip
    place = shell.backup()
    assert oct(place.stat().st_mode)[-3:] == "600"
    assert "work" in shell.verify(place)
    shell("qubes-prefs default_template", "")
    shell("qvm-remove -f --all")
    shell.volumes.images.clear()
    shell.restore(place)
    after = shell.inventory()
    assert after.keys() == before.keys()
    for name, one in before.items():
        assert {**after[name], "properties": {}, "uuid": ""} == {**one, "properties": {}, "uuid": ""}
        changed = {key for key, value in one["properties"].items() if after[name]["properties"][key] != value}
        assert not changed, (name, {key: (one["properties"][key], after[name]["properties"][key]) for key in changed})
    for key, data in content.items():
        assert shell.volumes.images[key].rstrip(b"\0") == data.rstrip(b"\0"), key
    assert shell("qvm-firewall --raw work list") == rules
    assert shell("qvm-notes --print work") == notes
    assert not list(shell.directory.glob("spool/*")) and not list(shell.directory.glob("backup/*"))


def test_choice_and_exclusion(shell: BackupShell) -> None:
    shell("qvm-create -l red third --prop include_in_backups=False")
    place = shell.directory / "b1"
    shell("qvm-backup -y -p", str(shell.passphrase), "-x", "lab", str(place))
    table = shell.verify(place)
    assert "deb" in table and "work" in table and "lab" not in table and "third" not in table
    place = shell.backup("third")
    assert "third" in shell.verify(place) and "work" not in shell.out
    shell.backup("nobody", status=1)
    assert "There is no qube 'nobody'" in shell.err


@pytest.mark.parametrize("words", ["--no-compress", "-Z gzip", "-Z bzip2", "-Z xz", "-z"])
def test_filters(shell: BackupShell, words: str) -> None:
    shell.fill("lab", "private", 1)
    place = shell.directory / "b"
    shell("qvm-backup -y -p", str(shell.passphrase), *words.split(), str(place), "lab")
    assert "whole" in shell.verify(place)


def test_names_that_are_taken(shell: BackupShell) -> None:
    data = shell.fill("work", "private", 1)
    place = shell.backup("work", "lab")
    shell.restore(place, status=1)
    assert "work is there already" in shell.err and "lab is there already" in shell.err
    shell.restore(place, "--skip-conflicting", "work")
    shell.restore(place, "--rename-conflicting", "work")
    assert "work-1" in shell.qubes()
    assert shell.volumes.images["work-1", "private"].rstrip(b"\0") == data
    shell.restore(place, "--rename-conflicting", "work")
    assert "work-2" in shell.qubes()


def test_missing_template(shell: BackupShell) -> None:
    shell("qvm-create -C TemplateVM -l black other")
    shell("qvm-prefs work template other")
    place = shell.backup("work", "lab")
    shell("qvm-remove -f work lab other")
    shell.restore(place, status=1)
    assert "its template other is neither here nor restored" in shell.err and "work" not in shell.qubes()
    shell.restore(place, "--skip-broken", status=1)
    assert "lab" in shell.qubes() and "work" not in shell.qubes()
    shell.restore(place, "--ignore-missing", "work")
    assert shell("qvm-prefs work template").strip() == "deb"


def test_a_name_that_is_not_in_the_backup(shell: BackupShell) -> None:
    place = shell.backup("work")
    shell.restore(place, "lab", status=1)
    assert "lab is not in the backup; there are: work" in shell.err


def test_wrong_passphrase_changes_nothing(shell: BackupShell) -> None:
    place = shell.backup("work")
    shell("qvm-remove -f work")
    shell.passphrase.write_text("something else\n")
    shell.restore(place, status=1)
    assert "passphrase is wrong" in shell.err and "work" not in shell.qubes()


def damaged(place: Path, member: bytes) -> Path:
    """A copy of a backup in which a bit of the content of a member is another."""
    data = bytearray(place.read_bytes())
    at = data.find(member)
    assert at > 0
    data[at + 512 + 4000] ^= 4
    other = place.with_name(f"{place.name}-damaged")
    other.write_bytes(data)
    return other


def test_a_damaged_qube_is_not_there_and_the_others_are(shell: BackupShell) -> None:
    shell.fill("work", "private", 1)
    shell.fill("lab", "private", 2)
    qid = shell("qvm-prefs work qid").strip()
    place = damaged(shell.backup("work", "lab"), f"vm{qid}/private.img.000.enc".encode())
    assert "code of authentication" in shell.verify(place, status=1)
    shell("qvm-remove -f work lab")
    table = shell.restore(place, status=1)
    assert "work  damaged" in table and "lab   whole" in table
    assert "Not everything is whole" in shell.err
    assert "work" not in shell.qubes() and "lab" in shell.qubes()
    shell("qvm-remove -f lab")
    shell.restore(place, "--keep-damaged", status=1)
    assert "work" in shell.qubes()
    assert "restored" in shell("qvm-features work prohibit-start")
    assert shell("qvm-features lab") == ""


def test_a_qube_goes_with_its_template(shell: BackupShell) -> None:
    shell.fill("deb", "root", 3)
    qid = shell("qvm-prefs deb qid").strip()
    place = damaged(shell.backup("deb", "work"), f"vm{qid}/root.img.000.enc".encode())
    shell("qubes-prefs default_template", "")
    shell("qvm-remove -f work lab deb")
    table = shell.restore(place, status=1)
    assert "its template deb is not whole" in table
    assert shell.qubes() == ["dom0"]


def test_a_cut_backup(shell: BackupShell) -> None:
    shell.fill("work", "private", 1)
    place = shell.backup("work", "lab")
    with open(place, "r+b") as file:
        file.truncate(place.stat().st_size // 2)
    shell("qvm-remove -f work lab")
    shell.restore(place, status=1)
    assert "could not be read to its end" in shell.err
    assert {"work", "lab"} - set(shell.qubes())


@pytest.mark.parametrize("name", [
    "v4-none.qbk", "v4-pax-sparse.qbk", "v4-manifest-member.qbk", "v3-enc-gzip.qbk", "v2-noheader-enc.qbk",
    "v4-c-xml-unknown-label.qbk",
])  # fmt: skip
def test_backups_of_upstream_are_restored(shell: BackupShell, name: str) -> None:
    shell("qvm-remove -f work lab")
    place = shell.sample(name)
    before = set(shell.qubes())
    shell.restore(place)
    made = set(shell.qubes()) - before
    assert len(made) >= 4
    features = {one["name"]: one["features"] for one in shell.daemon.client().inventory(features=None)}
    assert not any("restore-incomplete" in features[one] or "prohibit-start" in features[one] for one in made)


@pytest.mark.parametrize(
    "name", [name for name, one in samples.manifest().items() if one["expect"] == "refuse" and name not in samples.SLOW]
)
def test_refused_backups_leave_nothing_incomplete(shell: BackupShell, name: str) -> None:
    shell("qvm-remove -f work lab")
    place = shell.sample(name)
    shell.restore(place, "--ignore-missing", status=1)
    assert shell.err
    for one in shell.daemon.client().inventory(features=None):
        assert "restore-incomplete" not in one["features"], one


# -- interrupted


class Stalled:
    """A daemon whose export of a volume waits, so that a backup stands in its midst."""

    def __init__(self, shell: BackupShell, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.go = False

        async def export(name: str, volume: str, target: Path) -> None:
            self.begun.set()
            while not self.go:
                await asyncio.sleep(0.01)
            raise CasemateError("the disk is on fire")

        monkeypatch.setattr(shell.volumes, "export", export)
        self.errors: list[str] = []
        self.place = shell.directory / "never"
        profile = shell.directory / "backup" / "daily.conf"
        profile.parent.mkdir(exist_ok=True)
        profile.write_text(f"destination_path: {self.place}\ninclude: [work]\npassphrase_text: {PASSPHRASE}\n")
        self._client = shell.daemon.client()
        self._directory = shell.directory
        self.thread = threading.Thread(target=self._execute, daemon=True)
        self.thread.start()
        assert self.begun.wait(SECONDS)

    def _execute(self) -> None:
        try:
            self._client.call("admin.backup.Execute", "daily")
        except CasemateError as error:
            self.errors.append(str(error))

    def job(self) -> int:
        """The process that writes."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if (
                    b"casemate.backup.job" in path.read_bytes()
                    and f"PPid:\t{os.getpid()}" in (path.parent / "status").read_text()
                ):
                    return int(path.parent.name)
            except OSError:
                continue
        raise LookupError

    def left(self) -> list[Path]:
        return [*self._directory.glob("spool/*"), *self._directory.glob("*never*"), *self._directory.glob(".never*")]

    def ended(self) -> str:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        wait_for(lambda: not self.left(), SECONDS)
        return self.errors[0]


def test_cancelled(shell: BackupShell, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = Stalled(shell, monkeypatch)
    with pytest.raises(CasemateError, match="is running already"):
        shell.daemon.client().call("admin.backup.Execute", "daily")
    shell.daemon.client().call("admin.backup.Cancel", "daily")
    assert "cancelled" in stalled.ended()
    with pytest.raises(CasemateError, match="No backup"):
        shell.daemon.client().call("admin.backup.Cancel", "daily")


def test_the_writing_process_is_killed(shell: BackupShell, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = Stalled(shell, monkeypatch)
    os.kill(stalled.job(), signal.SIGKILL)
    stalled.go = True
    assert "the process that writes it" in stalled.ended()


def test_a_volume_cannot_be_read(shell: BackupShell, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = Stalled(shell, monkeypatch)
    stalled.go = True
    assert "on fire" in stalled.ended()
    assert shell("qvm-prefs work backup_timestamp").strip() == "0" or not shell.out.strip()


def test_the_passphrase_is_told_to_nobody(shell: BackupShell, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = Stalled(shell, monkeypatch)
    process = Path(f"/proc/{stalled.job()}")
    for what in ("cmdline", "environ"):
        assert PASSPHRASE.encode() not in (process / what).read_bytes()
    stalled.go = True
    stalled.ended()


def test_the_disk_is_full(shell: BackupShell) -> None:
    # The process that writes says so, whatever it wrote before.
    order = (
        b'{"passphrase": "eA==", "filter": "", "log_n": 4, "store": "eA==",'
        b' "files": [{"name": "vm1/notes.txt", "data": "eA=="}]}\n'
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "casemate.backup.job", str(full.fileno())], input=order, capture_output=True,
            pass_fds=[full.fileno()], env={"PYTHONPATH": str(ROOT / "src")}, timeout=SECONDS,
        )  # fmt: skip
    assert done.returncode == 1 and b"No space left" in done.stdout


def test_a_killed_restore_leaves_nothing_that_looks_whole(shell: BackupShell) -> None:
    shell.fill("work", "private", 1)
    place = shell.backup("work")
    shell("qvm-remove -f work")
    tool = [str(ROOT / "bin/qvm-backup-restore"), "--yes", "-p", str(shell.passphrase), "-"]
    with subprocess.Popen(tool, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=dict(os.environ)) as process:
        assert process.stdin is not None
        # All but the end: it waits for the rest with the qube made and its volume begun.
        process.stdin.write(place.read_bytes()[:100_000])
        process.stdin.flush()
        wait_for(lambda: "work" in shell.qubes() and "restore-incomplete" in shell("qvm-features work"), SECONDS)
        process.kill()
    assert "not been restored" in shell("qvm-features work prohibit-start")
    shell.restore(place)
    assert "work was left behind" in shell.err
    assert shell("qvm-features work") == ""


def test_an_interrupted_restore_removes_what_it_made(shell: BackupShell) -> None:
    place = shell.backup("work")
    shell("qvm-remove -f work")
    tool = [str(ROOT / "bin/qvm-backup-restore"), "--yes", "-p", str(shell.passphrase), "-"]
    with subprocess.Popen(
        tool, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=dict(os.environ),
        # A shell in the background makes its programs ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(place.read_bytes()[:60_000])
        process.stdin.flush()
        wait_for(lambda: "work" in shell.qubes(), SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
    assert "work" not in shell.qubes()


def test_profiles_are_kept_when_asked(shell: BackupShell) -> None:
    place = shell.directory / "b1"
    shell("qvm-backup -y -p", str(shell.passphrase), "--save-profile", "weekly", str(place), "work")
    assert (shell.directory / "backup/weekly.conf").stat().st_mode & 0o777 == 0o600
    place.unlink()
    shell("qvm-backup -y --profile weekly")
    assert place.exists()
    shell("qvm-backup --profile weekly -x work", status=2)
    shell("qvm-backup -y --profile missing", status=1)
    assert "no backup profile 'missing'" in shell.err
    shell("qvm-backup -y", status=2)


def test_the_newest_by_a_profile(shell: BackupShell) -> None:
    """Nobody types a passphrase, and a program can read what became of each qube."""
    stick = shell.directory / "stick"
    stick.mkdir()
    shell("qvm-backup -y -p", str(shell.passphrase), "--save-profile", "weekly", str(stick), "work", "lab")
    (stick / "qubes-backup-2020-01-01T000000").write_bytes(b"an older one, and no backup")
    jsonschema.Draft202012Validator(schemas()["casemate backup verify REPOSITORY"]).validate(
        found := json.loads(shell("casemate backup verify --json --progress --profile weekly"))
    )
    assert found["whole"] and {one["name"]: one["verdict"] for one in found["qubes"]} == {
        "work": "whole", "lab": "whole"
    }  # fmt: skip
    assert "progress " in shell.err
    shell("qvm-remove -f work")
    found = json.loads(shell("casemate backup restore --json -y --skip-conflicting --profile weekly", "work"))
    assert found["qubes"] == [{"name": "work", "verdict": "whole", "restored_as": "work", "why": ""}]
    shell("casemate backup restore --json --profile weekly work", status=2)
    assert "--json needs --yes" in shell.err
    shell("casemate backup verify --profile weekly -p", str(shell.passphrase), status=2)
    shell("casemate backup verify", status=2)
    assert "--profile" in shell.err
    shell("casemate backup verify --profile missing", status=1)


def test_an_import_for_a_qube_that_is_gone_stands_in_nobodys_way(shell: BackupShell) -> None:
    transport = shell.daemon.client().transport
    transport.internal("internal.vm.volume.ImportBegin", "private", "work", b"1000")
    with pytest.raises(CasemateError, match="coming in already"):
        transport.internal("internal.vm.volume.ImportBegin", "private", "work", b"1000")
    shell("qvm-remove -f work")
    shell("qvm-create -l blue work")
    transport.internal("internal.vm.volume.ImportBegin", "private", "work", b"1000")
    assert len(list(shell.directory.glob("spool/*"))) == 1
