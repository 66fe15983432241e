"""Tools of the policy: explain, files, lint, evaluation, the trace."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli import entry, trace
from casemate.cli.report import Report
from casemate.settings import Settings
from casemate.wire.qrexec import Command
from tests.fakes.shell import Shell, found_by_tools

POLICY = """\
# Ours
qubes.Filecopy  *      work        vault       allow
qubes.Filecopy  *      @tag:mail   @anyvm      ask default_target=vault
qubes.OpenURL   +https work        @dispvm     allow notify=yes
my.Service      +x     @anyvm      @default    allow target=vault user=root
"""
DENIALS = "qubes.Filecopy * @anyvm @anyvm deny\n* * @anyvm @adminvm deny\n"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    (tmp_path / "policy.d").mkdir(mode=0o700)
    (tmp_path / "policy.d" / "30-user.policy").write_text(POLICY)
    (tmp_path / "policy.d" / "90-default.policy").write_text(DENIALS)
    with found_by_tools(tmp_path, monkeypatch) as daemon:
        found = Shell(daemon, capsys)
        found("qvm-create -C TemplateVM -l black deb")
        for name in ("work", "vault", "letters", "dvm"):
            found(f"qvm-create -l blue -t deb {name} --prop netvm=")
        found("qvm-tags letters add mail")
        found("qvm-prefs dvm template_for_dispvms True")
        found("qvm-prefs work default_dispvm dvm")
        yield found


# -- explain


def test_explain_what_is_allowed(shell: Shell, tmp_path: Path) -> None:
    assert shell("casemate policy explain work qubes.Filecopy vault") == (
        "qubes.Filecopy+ of work to vault: allowed, goes to vault\n"
        "\n"
        "This rule decides:\n"
        "  30-user.policy:2: qubes.Filecopy * work vault allow\n"
        "\n"
        f"To deny it put this line into {tmp_path}/policy.d/30-user.policy, before line 2:\n"
        "  qubes.Filecopy * work vault deny\n"
    )


def test_explain_what_is_denied(shell: Shell, tmp_path: Path) -> None:
    assert shell("casemate policy explain work qubes.Filecopy deb") == (
        "qubes.Filecopy+ of work to deb: denied: denied by 90-default.policy:1\n"
        "\n"
        "This rule decides:\n"
        "  90-default.policy:1: qubes.Filecopy * @anyvm @anyvm deny\n"
        "\n"
        "These come before it and nearly fit:\n"
        "  30-user.policy:3: qubes.Filecopy * @tag:mail @anyvm ask default_target=vault\n"
        "      the source work does not have the tag mail\n"
        "  30-user.policy:2: qubes.Filecopy * work vault allow\n"
        "      the target is deb, not vault\n"
        "\n"
        f"To allow it put this line into {tmp_path}/policy.d/30-user.policy:\n"
        "  qubes.Filecopy * work deb allow\n"
    )
    out = shell("casemate policy explain work qubes.OpenURL+ftp @dispvm")
    assert "no rule fits" in out and "the argument is +ftp, not +https" in out
    assert out.endswith("  qubes.OpenURL +ftp work @dispvm allow\n")


def test_what_explain_suggests_does_it(shell: Shell, tmp_path: Path) -> None:
    calls = (
        "work qubes.Filecopy deb", "work my.Service vault", "letters qubes.Filecopy work", "vault x dom0",
        "work my.Service+x", "work qubes.OpenURL+a-b @dispvm", "work other.Service+y @dispvm:dvm",
    )  # fmt: skip
    for call in calls:
        words = shell(f"casemate policy explain {call}").split("put this line into ")[1]
        place, _, line = words.partition(":\n  ")
        file, _, before = place.partition(", before line ")
        path = Path(file)
        old = path.read_text()
        lines = old.splitlines(keepends=True)
        lines.insert(int(before) - 1 if before else len(lines), line)
        was_allowed = "allowed" in shell(f"casemate policy explain {call}").splitlines()[0]
        path.write_text("".join(lines))
        assert ("allowed" in shell(f"casemate policy explain {call}").splitlines()[0]) != was_allowed, call
        path.write_text(old)


def test_explain_what_no_rule_can_change(shell: Shell) -> None:
    for call in ("work qubes.Filecopy work", "work qubes.Filecopy @dispvm:vault"):
        assert shell(f"casemate policy explain {call}").endswith("No rule can change this.\n")
    assert "there is no such qube" in shell("casemate policy explain work my.Service+y nobody")
    shell("casemate policy explain nobody qubes.Filecopy vault", status=2)
    shell("casemate policy explain work", status=2)
    shell("casemate policy explain work +x vault", status=1)


def test_a_broken_policy_is_said_by_all(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "policy.d" / "50-bad.policy").write_text("\nqubes.Filecopy * work vault maybe\n")
    shell("casemate policy explain work qubes.Filecopy vault", status=1)
    assert "THE POLICY IS BROKEN" in shell.err and "50-bad.policy:2: 'maybe' is not" in shell.err
    shell("qubes-policy")
    assert "50-bad.policy:2" in shell.err
    assert "50-bad.policy:2" in shell("qubes-policy-lint", status=1)


# -- the files


def test_policy_files(shell: Shell, tmp_path: Path) -> None:
    assert shell("qubes-policy") == shell("qubes-policy --list") == "30-user\n90-default\n"
    assert shell("qubes-policy -g 30-user") == POLICY
    assert shell("qubes-policy --service my.Service") == "30-user\n"
    new = tmp_path / "new"
    new.write_text("my.Other * work vault allow\n")
    shell(f"qubes-policy --replace 20-mine --token new --file {new}")
    shell(f"qubes-policy --replace 20-mine --token new --file {new}", status=1)
    assert shell("qubes-policy --get 20-mine --with-token") == new.read_text()
    token = shell.err.strip()
    assert token.startswith("sha256:")
    new.write_text("my.Other * work vault perhaps\n")
    shell(f"qubes-policy -r 20-mine -f {new}", status=1)
    assert "20-mine.policy:1: 'perhaps'" in shell.err
    new.write_text("my.Other * work vault deny\n")
    shell(f"qubes-policy -r 20-mine -f {new} -t {token}")
    shell(f"qubes-policy -r 20-mine -f {new} -t {token}", status=1)
    shell(f"qubes-policy -d 20-mine -t {token}", status=1)
    shell("qubes-policy -d 20-mine")
    shell(f"qubes-policy -r include/shared -f {new}")
    assert shell("qubes-policy --list --include") == shell("qubes-policy --list include") == "shared\n"
    shell("qubes-policy --list shared", status=2)
    shell("qubes-policy --get", status=2)
    assert shell("qubes-policy --get shared --include") == shell("qubes-policy --get include/shared") == new.read_text()
    shell("qubes-policy --remove include/shared")
    shell("qubes-policy --get nothing", status=1)
    new.write_bytes(b"\xff")
    shell(f"qubes-policy -r 20-mine -f {new}", status=1)


def test_lint(shell: Shell, tmp_path: Path) -> None:
    bad = tmp_path / "bad.policy"
    bad.write_text(
        "a * work vault allow\nb work vault allow\n\nc * @x vault allow\n!include gone\nd + * @default allow\n"
    )
    assert shell(f"qubes-policy-lint {bad}", status=1) == (
        f"{bad}:2: error: a rule is: SERVICE ARGUMENT SOURCE TARGET ACTION [KEY=VALUE ...]\n"
        f"{bad}:4: error: '@x' cannot be a source\n"
        f"{bad}:5: error: gone: No such file or directory\n"
        f"{bad}:6: error: allow for @default needs target=\n"
    )
    out = shell(f"qubes-policy-lint --show-line {bad}", status=1)
    assert f"{bad}:4: error: '@x' cannot be a source: c * @x vault allow\n" in out
    good = tmp_path / "good.policy"
    good.write_text(
        "a * @anyvm * deny\na +x work vault allow\nb * * * deny\nb * @tag:x @anyvm allow\nc + work vault ask\n"
    )
    assert shell(f"qubes-policy-lint {good}") == (
        f"{good}:2: warning: never decides, {good}:1 fits whatever it would fit\n"
        f"{good}:4: warning: never decides, {good}:3 fits whatever it would fit\n"
    )
    old = tmp_path / "old"
    old.write_text("work $anyvm allow,target=vault\n$anyvm $anyvm deny\n")
    assert shell(f"qubes-policy-lint --include-service {old}") == ""
    shell(f"qubes-policy-lint {old}", status=1)
    assert shell("qubes-policy-lint") == ""
    shell("qubes-policy-lint missing", status=1)
    for line in ("!include gone", "!include-dir gone", "!include-service a * gone"):
        good.write_text(line)
        assert f"{good}:1: error: " in shell(f"qubes-policy-lint {good}", status=1)
    good.write_text("!compat-4.0")
    assert shell(f"qubes-policy-lint {good}") == "", "its files may be on another host"
    for line in ("!include", "!include-dir", "!include-service", "!compat-4.0"):
        good.write_text(line + " a b c d")
        shell(f"qubes-policy-lint {good}", status=1)
    good.write_text("1x * work vault allow\na * 1x vault allow\n")
    assert shell(f"qubes-policy-lint {good}") == f"{good}:2: warning: never decides, no qube can be '1x'\n"


def test_lint_reads_what_a_file_includes(shell: Shell, tmp_path: Path) -> None:
    """Beside the file first, then in the policy in place."""
    new = tmp_path / "new"
    (new / "include").mkdir(parents=True)
    (tmp_path / "policy.d" / "include").mkdir()
    (new / "include" / "mine").write_text("a * work vault allow\n")
    (tmp_path / "policy.d" / "include" / "theirs").write_text("b * work vault perhaps\n")
    file = new / "50-new.policy"
    file.write_text("!include include/mine\n")
    assert shell(f"qubes-policy-lint {file}") == ""
    file.write_text("!include include/mine\n!include include/theirs\n")
    assert shell(f"qubes-policy-lint -s {file}", status=1) == (
        "error: include/theirs:1: 'perhaps' is not allow, ask or deny\n"
    )


def test_a_change_must_fit_the_files_of_the_run_time_directory(shell: Shell, tmp_path: Path) -> None:
    """The policy that decides is both directories: an include that is used in the other one stays."""
    over = tmp_path / "run" / "policy.d"
    new = tmp_path / "new"
    new.write_text("my.Other * work vault allow\n")
    shell(f"qubes-policy -r include/shared -f {new}")
    (over / "20-today.policy").write_text("!include include/shared\n")
    shell("qubes-policy -d include/shared", status=1)
    assert "20-today.policy:1: include/shared: no such file" in shell.err
    new.write_text("my.Other * work vault perhaps\n")
    shell(f"qubes-policy -r include/shared -f {new}", status=1)
    (over / "20-today.policy").write_text("# nothing\n")
    shell("qubes-policy -d include/shared")


def test_lint_of_standard_input(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "input").write_text("a b\n")
    with open(tmp_path / "input") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert shell("qubes-policy-lint -", status=1).startswith("stdin:1: error: a rule is: ")


# -- evaluation


def test_exec_with_a_policy_elsewhere(shell: Shell, tmp_path: Path) -> None:
    path = f"--path {tmp_path / 'policy.d'}"
    uuid = shell("qvm-prefs vault uuid").strip()
    assert shell(f"qrexec-policy-exec {path} work vault qubes.Filecopy") == (
        f"result=allow\nuser=DEFAULT\ntarget=vault\nrequested_target=vault\nautostart=True\ntarget_uuid=uuid:{uuid}\n"
    )
    assert shell(f"qrexec-policy-exec {path} work deb qubes.Filecopy", status=1) == "result=deny\n"
    assert shell(f"qrexec-policy-exec {path} letters vault qubes.Filecopy", status=1) == "result=deny\n"
    out = shell(f"qrexec-policy-exec {path} --assume-yes-for-ask letters vault qubes.Filecopy")
    assert "target=vault\n" in out
    out = shell(f"qrexec-policy-exec {path} work", "", "my.Service+x")
    assert "user=root\ntarget=vault\nrequested_target=@default\n" in out
    assert "target=@dispvm:dvm\n" in shell(f"qrexec-policy-exec {path} work @dispvm qubes.OpenURL+https")
    over = tmp_path / "over"
    over.mkdir()
    (over / "30-user.policy").write_text("")
    shell(f"qrexec-policy-exec --path {over} {path} work vault qubes.Filecopy", status=1)
    for wrong in ("work vault a/b", "work v/x a", "w/k vault a"):
        shell(f"qrexec-policy-exec {path} {wrong}", status=2)
    shell("qrexec-policy-exec work vault a", status=1)  # this daemon has no such socket
    assert shell.err.startswith("qrexec-policy-exec: error: ")


def test_graph(shell: Shell, tmp_path: Path) -> None:
    assert shell("qrexec-policy-graph --source work --full-output") == (
        "digraph g {\n"
        '  "work" -> "vault" [color=red label="my.Service+x target=vault user=root" tooltip="30-user.policy:5"];\n'
        '  "work" -> "vault" [color=red label="qubes.Filecopy" tooltip="30-user.policy:2"];\n'
        '  "work" -> "@dispvm:dvm" [color=red label="qubes.OpenURL+https notify=yes" tooltip="30-user.policy:4"];\n'
        "}\n"
    )
    asks = shell("qrexec-policy-graph --include-ask --service qubes.Filecopy --source letters --target vault work")
    assert asks == (
        'digraph g {\n  "letters" -> "vault" [color=orange label="qubes.Filecopy"];\n'
        '  "letters" -> "work" [color=orange label="qubes.Filecopy"];\n}\n'
    )
    assert shell("qrexec-policy-graph --source letters --service qubes.Filecopy") == "digraph g {\n}\n"
    assert shell("qrexec-policy-graph --source work --target vault --skip-labels") == (
        'digraph g {\n  "work" -> "vault" [color=red];\n}\n'
    )
    system = tmp_path / "system.json"
    system.write_text(json.dumps({"domains": {
        "work": {"type": "AppVM", "tags": [], "uuid": "1"}, "vault": {"type": "AppVM", "tags": [], "uuid": "2"},
    }}))  # fmt: skip
    out = tmp_path / "out.dot"
    shell(f"qrexec-policy-graph --system-info {system} --service qubes.Filecopy --output {out}")
    assert out.read_text() == 'digraph g {\n  "work" -> "vault" [color=red label="qubes.Filecopy"];\n}\n'
    (tmp_path / "policy.d" / "40-all.policy").write_text("* * vault work allow\n")
    assert shell("qrexec-policy-graph --source vault --target work") == (
        'digraph g {\n  "vault" -> "work" [color=red label="*"];\n'
        '  "vault" -> "work" [color=red label="my.Service+x"];\n'
        '  "vault" -> "work" [color=red label="qubes.Filecopy"];\n'
        '  "vault" -> "work" [color=red label="qubes.OpenURL+https"];\n}\n'
    )
    assert shell("qrexec-policy-graph --source vault --target work --service any.Thing+x") == (
        'digraph g {\n  "vault" -> "work" [color=red label="any.Thing+x"];\n}\n'
    )
    system.write_text("[]")
    shell(f"qrexec-policy-graph --system-info {system}", status=1)


# -- the trace


def test_lines_of_the_trace() -> None:
    step = {"id": "4", "phase": "refused", "at": 0.0123, "source": "work", "service": "a", "argument": "x",
            "target": "vault", "cause": "busy", "why": "\x1btoo many"}  # fmt: skip
    assert trace.line_of(step, "10:00:00") == (
        "10:00:00      4       12.3 ms  refused   work -> vault  a+x  (busy) \\x1btoo many"
    )
    assert trace.concerns(step, "vault") and not trace.concerns(step, "other")
    step = {
        "id": "4",
        "phase": "ended",
        "at": 1,
        "source": "work",
        "service": "a",
        "argument": "",
        "target": "v",
        "status": 3,
    }
    assert trace.line_of(step, "10:00:00").endswith("1000.0 ms  ended     work -> v  a+  status 3")


def test_tools_report_only_to_somebody(tmp_path: Path) -> None:
    settings = Settings(tmp_path, tmp_path, tmp_path)
    Report(settings, Command("user", "a", None, "dom0"), "work").step("ended", status=0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as watcher:
        watcher.bind(str(tmp_path / "reports.sock"))
        watcher.settimeout(5)
        Report(settings, Command("user", "a", "b", "dom0"), "work").step("ended", status=3)
        asked, ended = json.loads(watcher.recv(4096)), json.loads(watcher.recv(4096))
    assert asked["phase"] == "asked" and asked["argument"] == "b" and asked["id"].startswith(f"t{os.getpid()}.")
    assert (ended["phase"], ended["status"], ended["id"]) == ("ended", 3, asked["id"])


def test_every_tool_has_help() -> None:
    for name in ("qubes-policy", "qubes-policy-lint", "qrexec-policy-exec", "qrexec-policy-graph"):
        assert entry.main([name, "--help"]) == 0
