"""``casemate backup`` over the real API, borg and QEMU's NBD server, with volumes in memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.backup.incremental.borg import Borg
from casemate.wire.errors import CasemateError
from tests.builders import wait_for
from tests.component.test_backup_tools import PASSPHRASE, ROOT, SECONDS, BackupShell
from tests.fakes.shell import found_by_tools

ROUNDS = 100 if os.environ.get("CASEMATE_FULL") else 6


class RepositoryShell(BackupShell):
    """Runs ``casemate backup`` on one repository."""

    @property
    def repository(self) -> Path:
        return self.directory / "repository"

    def verb(self, verb: str, *words: str, status: int = 0) -> str:
        """Options and their values go before the names, as the parser wants them."""
        options, rest = ["-p", str(self.passphrase)], list(words)
        while any(word.startswith("-") for word in rest):
            at = next(number for number, word in enumerate(rest) if word.startswith("-"))
            length = 2 if rest[at] in ("--keep-last", "--backup") else 1
            options += rest[at : at + length]
            del rest[at : at + length]
        return self(f"casemate backup {verb}", *options, str(self.repository), *rest, status=status)

    def create(self, *words: str, status: int = 0) -> str:
        return self.verb("create", "-y", *words, status=status)

    def backups(self) -> list[str]:
        return [line.split()[0] for line in self.verb("list").splitlines()[1:]]

    def archives(self) -> list[str]:
        borg = Borg(self.repository, PASSPHRASE.encode(), self.directory / "backup/borg")
        return sorted(one.name for one in borg.archives())


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[RepositoryShell]:
    with found_by_tools(tmp_path, monkeypatch, request_seconds=SECONDS) as daemon:
        found = RepositoryShell(daemon, capsys, tmp_path)
        found.furnish()
        found.verb("init")
        yield found


def test_what_was_backed_up_comes_back(shell: RepositoryShell) -> None:
    shell("qvm-tags work add secret")
    shell("qvm-features work menu-favourites", "a b")
    shell("qvm-firewall work add drop dsthost=192.0.2.0/24")
    shell("qvm-notes work --set", "one\nü\n")
    rules, notes = shell("qvm-firewall --raw work list"), shell("qvm-notes --print work")
    before = shell.inventory()
    content = {key: shell.fill(*key, seed) for seed, key in enumerate([("deb", "root"), ("work", "private")])}
    shell.create()
    first = shell.backups()
    assert len(first) == 1
    assert "whole" in shell.verb("verify")
    # A second backup of the same adds its own snapshot, and no layer.
    layers = [name for name in shell.archives() if name.startswith("layer-")]
    shell.create()
    assert [name for name in shell.archives() if name.startswith("layer-")] == layers
    second = shell.backups()
    assert second[0] == first[0] and len(second) == 2 and second[1] > second[0]
    shell("qubes-prefs default_template", "")
    shell("qvm-remove -f --all")
    shell.volumes.images.clear()
    shell.verb("restore", "-y")
    after = shell.inventory()
    assert after.keys() == before.keys()
    assert {**after["work"], "properties": {}, "uuid": ""} == {**before["work"], "properties": {}, "uuid": ""}
    for key, data in content.items():
        assert shell.volumes.images[key].rstrip(b"\0") == data.rstrip(b"\0"), key
    assert shell("qvm-firewall --raw work list") == rules and shell("qvm-notes --print work") == notes
    assert not list(shell.directory.glob("spool/*")) and not list(shell.directory.glob("backup/*.conf"))


def test_an_older_backup_and_what_changed_since(shell: RepositoryShell) -> None:
    old = shell.fill("work", "private", 1)
    shell.create("work", "lab")
    shell.fill("work", "private", 2)
    shell("qvm-tags work add secret")
    shell("qvm-remove -f lab")
    shell.create("work")
    first, _second = shell.backups()
    said = shell.verb("diff", first)
    assert "- lab" in said and "~ work: tag secret added" in said and "~ work: volume private changed" in said
    assert "work" in shell.verb("list", first) and "lab" in shell.out
    shell("qvm-remove -f work")
    shell.verb("restore", "-y", "--backup", first, "work")
    assert shell.volumes.images["work", "private"].rstrip(b"\0") == old
    assert shell.qubes() == ["deb", "dom0", "work"]
    shell.verb("list", "20010101-000000", status=1)
    assert "There is no backup '20010101-000000'" in shell.err


def test_prune_gives_back_what_nobody_needs(shell: RepositoryShell) -> None:
    for seed in range(3):
        shell.fill("work", "private", seed)
        shell.create("work")
    shell.verb("prune", "-n", "--keep-last", "1")
    assert len(shell.backups()) == 3
    shell.verb("prune", "-y", status=2)
    shell.verb("prune", "-y", "--keep-last", "1")
    assert len(shell.backups()) == 1 and len(shell.archives()) == 2
    assert "whole" in shell.verb("verify")
    shell.create("work", "--keep-last", "1")  # a backup can prune by itself
    assert len(shell.backups()) == 1 and len(shell.archives()) == 2


def test_clear_messages(shell: RepositoryShell) -> None:
    shell.verb("list", "20010101-000000", status=1)
    assert "There is no backup in" in shell.err
    shell.verb("init", status=1)
    assert "already exists" in shell.err
    shell.passphrase.write_text("something else\n")
    for verb in ("list", "verify", "restore"):
        shell.verb(verb, status=1)
        assert "The passphrase is wrong" in shell.err
    shell.create("work", status=1)
    assert "The passphrase is wrong" in shell.err
    missing = shell.directory / "nothing"
    for verb in ("list", "create", "check"):
        shell(f"casemate backup {verb} {missing}", status=1)
        assert f"There is no repository in {missing}" in shell.err
    shell.create("nobody", status=1)
    assert "There is no qube 'nobody'" in shell.err


def test_without_borg(shell: RepositoryShell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.backup.incremental.borg._PATH", "/usr/bin-without-borg")
    shell.verb("list", status=1)
    assert "borg is not installed" in shell.err and "borgbackup" in shell.err


def test_somebody_else_holds_the_repository(shell: RepositoryShell) -> None:
    shell.create("work")
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(shell.repository / "casemate.lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        for verb, words in (("create", ["-y", "work"]), ("prune", ["-y", "--keep-last", "1"]), ("restore", ["-y"])):
            shell.verb(verb, *words, status=1)
            assert "is in use" in shell.err
    shell.create("work")


def damage(shell: RepositoryShell) -> None:
    """Change a byte in the midst of the largest file of borg's: that of a volume's data."""
    segment = max((shell.repository / "data").rglob("*[0-9]"), key=lambda path: path.stat().st_size)
    with open(segment, "r+b") as file:
        file.seek(segment.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


def test_a_damaged_repository(shell: RepositoryShell) -> None:
    shell.create("lab")
    content = shell.fill("work", "private", 1)
    shell.create("work", "lab")
    _first, second = shell.backups()
    damage(shell)
    table = shell.verb("verify", status=1)
    assert "work  damaged" in table and "lab   whole" in table
    shell.verb("check", status=1)
    assert f"Backup {second}: damaged is work" in shell.out and "lab" not in shell.out and "is damaged" in shell.err
    shell("qvm-remove -f lab work")
    table = shell.verb("restore", "-y", status=1)
    assert "work  damaged" in table and "work" not in shell.qubes() and "lab" in shell.qubes()
    # Nothing new may rely on what is damaged, until it has been taken out.
    shell("qvm-create -l blue work")
    shell.volumes.images["work", "private"] = content
    shell.create("work", status=1)
    assert "check --repair" in shell.err
    shell.verb("check", "--repair", status=1)
    assert f"Backup {second}: damaged is work" in shell.out
    shell.create("work")
    assert "work  whole" in shell.verb("verify")


def test_a_full_disk(shell: RepositoryShell, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    small = tmp_path / "repository"
    subprocess.run(["rm", "-r", str(small)], check=True)
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", str(small)], check=True)
    try:
        shell.verb("init")
        shell.create("lab")
        shell.volumes.images["work", "private"] = random.Random(1).randbytes(8 << 20)
        shell.create("work", status=1)
        assert "No space left" in shell.err
        assert len(shell.backups()) == 1 and "whole" in shell.verb("verify")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _victims(daemon: int) -> list[int]:
    """The process that makes a backup for us, the borg that it has loaded, and the one that is forked from that."""
    found = []
    jobs = [path for path in Path("/proc").glob("[0-9]*") if b"incremental.job" in _line(path)]
    for path in jobs:
        if f"PPid:\t{daemon}\n" in _status(path):
            found.append(int(path.name))
            for _generation in range(2):
                found += [pid for pid in _children(found) if pid not in found]
    return found


def _children(parents: list[int]) -> list[int]:
    lines = [f"PPid:\t{pid}\n" for pid in parents]
    all_of_them = [(int(one.name), _status(one)) for one in Path("/proc").glob("[0-9]*")]
    return [pid for pid, status in all_of_them if any(line in status for line in lines)]


def _line(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def _status(path: Path) -> str:
    try:
        return (path / "status").read_text()
    except OSError:
        return ""


@pytest.mark.timeout(SECONDS * 20)
def test_killed_backups_leave_a_repository_that_works(shell: RepositoryShell) -> None:
    shell.fill("work", "private", 1)
    tool = [
        str(ROOT / "bin/casemate"), "backup", "create", "-q", "-y", "-p", str(shell.passphrase), str(shell.repository),
        "work",
    ]  # fmt: skip
    begin = time.monotonic()
    subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - begin
    random.seed(16)
    for number in range(ROUNDS):
        shell.fill("work", "private", 100 + number)
        with subprocess.Popen(tool, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(random.uniform(0, whole))
            victim = random.choice([process.pid, *_victims(os.getpid())])
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(SECONDS)
        wait_for(lambda: not _victims(os.getpid()), SECONDS)  # what a killed tool began may be finished
        assert "whole" in shell.verb("verify") and not list(shell.directory.glob("spool/*"))
    content = shell.fill("work", "private", 99)
    shell.create("work")
    assert "No damage" in shell.verb("check", "--read-data")
    shell("qvm-remove -f work")
    shell.verb("restore", "-y", "work")
    assert shell.volumes.images["work", "private"].rstrip(b"\0") == content
    shell.verb("prune", "-y", "--keep-last", "1")
    assert len(shell.archives()) == 2


def test_a_cancelled_backup_is_none(shell: RepositoryShell) -> None:
    shell.volumes.images["work", "private"] = os.urandom(300 << 20)
    profile = shell.directory / "backup/daily.conf"
    profile.write_text(
        f"destination_path: {shell.repository}\nrepository: true\ninclude: [work]\npassphrase_text: {PASSPHRASE}\n"
    )
    errors: list[str] = []
    client = shell.daemon.client()

    def execute() -> None:
        try:
            client.call("admin.backup.Execute", "daily")
        except CasemateError as error:
            errors.append(str(error))

    thread = threading.Thread(target=execute)
    thread.start()
    wait_for(lambda: len(_victims(os.getpid())) > 1, SECONDS)  # the job has started borg
    shell.daemon.client().call("admin.backup.Cancel", "daily")
    thread.join(SECONDS)
    assert errors == ["The backup was cancelled"] and not _victims(os.getpid())
    assert not list(shell.directory.glob("spool/*")) and shell.backups() == []
    shell.verb("create", "--profile", "daily", "-y", status=2)
    shell("casemate backup create -y --profile daily")
    assert "whole" in shell.verb("verify")


def test_the_passphrase_is_nowhere(shell: RepositoryShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in arguments nor in the environment of borg, nor in a file that is left."""
    seen: list[bytes] = []
    real = subprocess.Popen

    def popen(argv: list[str], **options: object) -> object:
        seen.append(repr((argv, options.get("env"))).encode())
        return real(argv, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)
    shell.create("work")
    shell.verb("verify")
    assert any(b"borg" in one for one in seen) and not any(PASSPHRASE.encode() in one for one in seen)
    for path in shell.directory.rglob("*"):
        if path.is_file() and path != shell.passphrase:
            assert PASSPHRASE.encode() not in path.read_bytes(), path


def test_a_volume_by_hand(shell: RepositoryShell) -> None:
    """The page's program makes a volume from what borg extracts."""
    content = shell.fill("work", "private", 1)
    shell.create("work")
    page = (ROOT / "docs/howto/backup.md").read_text()
    program = page.split("```python\n", 1)[1].split("```", 1)[0]
    (layer,) = [name for name in shell.archives() if name.startswith("layer-")]
    with open(shell.directory / "layer", "wb") as out:
        subprocess.run(
            ["borg", "extract", "--stdout", f"{shell.repository}::{layer}"], check=True, stdout=out,
            env={**os.environ, "BORG_PASSPHRASE": PASSPHRASE, "BORG_BASE_DIR": str(shell.directory / "other")},
        )  # fmt: skip
    image = shell.directory / "image"
    subprocess.run([sys.executable, "-c", program, str(image), str(shell.directory / "layer")], check=True)
    with open(image, "rb") as file:
        assert file.read(len(content)) == content
    assert image.stat().st_size == shell.daemon.store.snapshot().domains["work"].volume("private").size
