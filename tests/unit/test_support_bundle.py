"""The support bundle: what it has, and that nothing private is in it, wherever it was planted."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli import support_bundle
from casemate.cli.support_bundle import Scrubber
from tests.builders import short_directory
from tests.fakes.shell import Shell, found_by_tools

SECRETS = (
    "Zanzibar", "xyzzy-bank", "hunter7plugh", "frobozz", "4929123456781234", "grue@quux", "Plover", "\u00fcbung",
)  # fmt: skip


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """A state with secrets in all places where a person or a guest can leave some."""
    monkeypatch.setenv("FROBOZZ_TOKEN", "hunter7plugh")
    with short_directory() as directory, found_by_tools(directory, monkeypatch) as daemon:
        found = Shell(daemon, capsys)
        found("qvm-create -C TemplateVM -l black deb")
        found("qvm-create -l orange -t deb xyzzy-bank --prop memory=700 --prop default_user=zanzibar")
        found("qvm-create -l red -t deb work --prop kernelopts=frobozz=hunter7plugh")
        found("qvm-features work Plover hunter7plugh")
        found("qvm-features work service.cups hunter7plugh")
        found("qvm-tags work add Zanzibar")
        found("qvm-notes work --set", "frobozz 4929123456781234")
        found("qvm-firewall work add accept grue.example tcp 443", "comment=hunter7plugh")
        (directory / "policy.d" / "30-user.policy").write_text("my.Frobozz * xyzzy-bank work allow\n")
        (directory / "backup-profile.conf").write_text("passphrase_text: hunter7plugh\n")
        log = directory / "run" / "log"
        log.mkdir(exist_ok=True)
        log.joinpath("casemated.log").write_text(
            "2026-01-02 03:04:05,678 INFO casemated: serving /home/grue@quux.example/qubesd.sock\n"
            "2026-01-02 03:04:06,678 ERROR casemate.engine.lifecycle: Cannot start xyzzy-bank: the agent does not"
            " answer; its console ends:\n  login: Zanzibar state the qube\n  password of the store is frobozz\n"
            "2026-01-02 03:04:07,678 WARNING casemate.engine.preloads: removed-long-ago-Plover:"
            " 4929123456781234 \u00fcbung\n"
            "Traceback (most recent call last):\n"
            '  File "/home/Zanzibar/src/casemate/engine/power.py", line 12, in start\n'
            "casemate.wire.errors.StoreError: frobozz\n"
        )
        log.joinpath("link-xyzzy-bank.log").write_text("2026-01-02 03:04:05 xyzzy-bank: violation: hunter7plugh\n")
        yield found


def test_no_planted_secret_is_in_it(shell: Shell) -> None:
    text = shell("casemate support-bundle --yes -o", str(shell.daemon.store.path.parent / "bundle.txt"))
    for secret in SECRETS:
        assert secret.lower() not in text.lower(), secret
    for word in ("password of the store", "login"):
        assert word not in text, "a guest's console is not shown, even where its words are ours"


def test_it_has_what_helps(shell: Shell) -> None:
    text = shell("casemate support-bundle")
    assert "nothing is written" in shell.err.lower()
    assert "qube-3: AppVM, Halted; default_user=***, memory=700, template=qube-1" in text
    assert "ERROR casemate.engine.lifecycle: Cannot start qube-3: the agent does not answer; \n" in text
    assert 'File "/home/***/src/casemate/engine/power.py", line 12, in start' in text
    assert "WARNING casemate.engine.preloads: ***: *** ***" in text
    assert "== Log: link of qube-3\n2026-01-02 03:04:05 qube-3: violation: ***" in text
    assert "\n    features: *** service.cups\n" in text
    for title in ("Casemate", "Host", "Status", "Pools", "Log: casemated"):
        assert f"== {title}\n" in text
    assert "python: 3." in text and "pool-1: qcow2" in text


def test_what_is_written_is_what_was_shown(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "bundle.txt"
    shown = shell("casemate support-bundle -y -o", str(path))
    assert path.read_text() == shown and stat.S_IMODE(path.stat().st_mode) == 0o600
    shell("casemate support-bundle -y -o", str(path), status=1)
    assert path.read_text() == shown, "a file that is there is not replaced"


def test_nothing_is_written_without_a_yes(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle.txt"

    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    answer = "n\n"
    shell("casemate support-bundle -o", str(path), status=1)
    assert not path.exists()
    answer = "y\n"
    shell("casemate support-bundle -o", str(path))
    assert path.exists()


def test_a_daemon_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from casemate.client.qubes import Qubes
    from casemate.client.transport import Transport
    from tests.builders import settings_in

    text = support_bundle.collect(Qubes(Transport(settings_in(tmp_path), daemon=())))
    assert "The daemon does not answer: No daemon listens on" in text and "== Host\nsystem: " in text
    assert "== Status\nnot known: " in text


def test_logs_that_cannot_be_read_are_told(shell: Shell) -> None:
    """As for a member of the group, to whom the directory is closed. A file in its place closes it to root, too."""
    log = shell.daemon.socket.parent / "log"
    log.rename(log.with_name("elsewhere"))
    log.touch()
    text = shell("casemate support-bundle")
    assert "== Log: casemated\nnot known: " in text and "== Qubes\n" in text and "link of" not in text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("work does not start", "qube-1 does not start"),
        ("work2 and my-work", "*** and ***"),
        ("link-work.log", "link-qube-1.log"),
        ("12345678", "***"),
        ("123456", "123456"),
        ("AKIA1234", "***"),
        ("\u30d1\u30b9", "***"),
        ("10.137.0.3", "10.137.0.3"),
    ],
)
def test_words(said: str, shown: str) -> None:
    assert Scrubber(["work"]).text(said) == shown
