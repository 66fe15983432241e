"""The policy's language and files: what is understood, what makes the whole policy unusable, what is read when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.qrexec import tokens
from casemate.qrexec.files import PolicyFiles, default_policy
from casemate.qrexec.parser import Includes, Parser
from casemate.qrexec.tokens import impossible
from casemate.wire.errors import PolicyError, ValueInvalidError
from tests.unit.test_policy import REQUESTS, allowed, policy


@pytest.mark.parametrize(
    "line",
    [
        "svc",
        "svc * work vault",
        "svc * work vault permit",
        "svc * work vault ALLOW",
        "* +arg work vault allow",
        "svc arg work vault allow",
        "svc +a/b work vault allow",
        "svc +a$b work vault allow",
        "s/vc * work vault allow",
        "svc * work vault allow # comment",
        "svc * work vault allow target",
        "svc * work vault allow target=",
        "svc * work vault allow target=*",
        "svc * work vault allow target=@anyvm",
        "svc * work vault allow target=@default",
        "svc * work vault allow target=@tag:x",
        "svc * work vault allow target=a target=b",
        "svc * work vault allow user=-r",
        "svc * work vault allow notify=true",
        "svc * work vault allow autostart=1",
        "svc * work vault allow default_target=work",
        "svc * work vault deny target=work",
        "svc * work vault deny user=root",
        "svc * @default vault allow",
        "svc * @dispvm vault allow",
        "svc * @dispvm: vault allow",
        "svc * @dispvm:@x vault allow",
        "svc * @dispvm:@tag:@x vault allow",
        "svc * @tag: vault allow",
        "svc * @tag:\u0440 vault allow",
        "svc * @type: vault allow",
        "svc * @any vault allow",
        "svc * work @foo allow",
        "svc * work vault allow user=a:b",
        "svc * work vault allow user=a/b",
        "svc * wo\u0440k vault allow",
        "$include:x",
        "!include",
        "!include a b",
        "!include-service svc x",
        "!compat-4.0",
        "!compat-4.0 x",
        "!unknown",
    ],
)
def test_a_line_that_is_not_understood_names_file_and_line(line: str) -> None:
    with pytest.raises(PolicyError, match=r"^test\.policy:3: "):
        policy("# comment", "", line)


@pytest.mark.parametrize(
    "line",
    [
        "svc * 1x vault allow",
        "svc * a+b vault allow",
        "svc * work a/b deny",
        "svc * *-web vault allow",
        "svc * work uuid:1 allow",
        "svc * work uuid:00000000-0000-4000-8000-00000000000A allow",
        f"svc * {'w' * 40} vault allow",
        "svc * @dispvm:dom0 vault allow",
        "svc * work @dispvm:1x allow",
        "svc * work @default allow target=1x",
    ],
)
def test_a_name_that_no_qube_can_have_fits_nothing(line: str) -> None:
    """Upstream's parser takes any word for a name. That breaks nothing, so the other rules still count."""
    rules = policy(line, "other * work vault allow")
    assert all(allowed(rules, request) is None for request in (*REQUESTS, ""))
    assert allowed(rules, "vault", call="other+x") == "vault"
    assert sum(impossible(token) for token in (rules.rules[0].source, rules.rules[0].target)) <= 1


@pytest.mark.parametrize(
    ("line", "user"),
    [
        ("svc * work vault allow user=DEFAULT", None),
        ("svc * work vault allow user=", None),
        ("svc * work vault allow user=first.Last", "first.Last"),
        ("svc * @type:x-y vault allow", None),
        ("svc * @tag:a/b vault allow", None),
        ("svc * work @dispvm:@tag:1.x allow", None),
        ("-svc * work vault allow", None),
        (".svc +" + "a" * 300 + " work vault allow", None),
        ("svc" * 40 + " * work vault allow", None),
        ("\x0c svc\u00a0* work vault\x0ballow \x1c", None),
    ],
)
def test_lines_that_upstream_takes(line: str, user: str | None) -> None:
    (rule,) = policy(line).rules
    assert rule.user == user


def test_a_carriage_return_ends_a_line() -> None:
    assert allowed(policy("# comment\rsvc * work vault allow\r\n"), "vault") == "vault"


def test_blanks_and_comments() -> None:
    assert len(policy("", "  # x", "\t svc \t*   work vault\tallow  ", "#").rules) == 1


@given(st.text(max_size=200))
def test_garbage_is_a_policy_error(text: str) -> None:
    try:
        Parser().parse("x", text)
    except PolicyError:
        pass
    for word in text.split():
        for parse in (tokens.source, tokens.target, tokens.redirect):
            try:
                parse(word)
            except ValueInvalidError:
                pass


class Dict(Includes):
    def __init__(self, **files: str) -> None:
        self.files = files

    def file(self, path: str) -> tuple[str, str]:
        return path, self.files[path]


def test_an_include_that_never_ends_is_an_error() -> None:
    for files in ({"a": "!include a"}, {"a": "!include b", "b": "!include a"}, {"a": "!include b", "b": "\nbroken"}):
        parser = Parser(Dict(**files))
        with pytest.raises(PolicyError, match=r"^[ab]:"):
            parser.parse("main", "!include a")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_files_are_read_in_order_and_others_ignored(tmp_path: Path) -> None:
    write(tmp_path / "90-z.policy", "svc * * * deny")
    write(tmp_path / "10-a.policy", "svc * work vault allow")
    for name in (".hidden.policy", "10-a.policy~", "10-a.policy.rpmsave", "README", "#x.policy#"):
        write(tmp_path / name, "broken")
    (tmp_path / "sub.policy").mkdir()
    assert [rule.location for rule in PolicyFiles(tmp_path).current().rules] == ["10-a.policy:1", "90-z.policy:1"]


def test_includes(tmp_path: Path) -> None:
    write(
        tmp_path / "10.policy",
        "!include more/one\nsvc * dvm * deny\n!include-dir more\n!include-service old +x legacy/old\n",
    )
    write(tmp_path / "more/one", "svc * work * deny\n")
    write(tmp_path / "more/b.policy", "svc * vault * deny\n")
    write(tmp_path / "more/a.policy", "svc * plain * deny\n!include more/one\n")
    write(tmp_path / "legacy/old", "# old\nwork $anyvm allow,target=vault,user=root\n$include:legacy/rest\n")
    write(tmp_path / "legacy/rest", "$anyvm  $dispvm:dvm  deny\n")
    rules = PolicyFiles(tmp_path).current().rules
    assert [(r.location, r.service, r.argument, str(r.source), str(r.target), r.action) for r in rules] == [
        ("more/one:1", "svc", None, "work", "*", "deny"),
        ("10.policy:2", "svc", None, "dvm", "*", "deny"),
        ("more/a.policy:1", "svc", None, "plain", "*", "deny"),
        ("more/one:1", "svc", None, "work", "*", "deny"),
        ("more/b.policy:1", "svc", None, "vault", "*", "deny"),
        ("legacy/old:2", "old", "x", "work", "@anyvm", "allow"),
        ("legacy/rest:1", "old", "x", "@anyvm", "@dispvm:dvm", "deny"),
    ]
    assert (rules[5].redirect, rules[5].user) == ("vault", "root")


def test_one_broken_file_denies_everything_and_says_where(tmp_path: Path) -> None:
    write(tmp_path / "10-good.policy", "svc * work vault allow")
    files = PolicyFiles(tmp_path)
    assert allowed(files.current()) == "vault"
    write(tmp_path / "50-bad.policy", "\n\nsvc * work vault allow sometimes")
    for _ in range(2):
        with pytest.raises(PolicyError, match=r"^50-bad\.policy:3: "):
            files.current()
    (tmp_path / "50-bad.policy").unlink()
    assert allowed(files.current()) == "vault"


@pytest.mark.parametrize("name", ["UPPER.policy", "with space.policy", "\u00e9.policy"])
def test_a_bad_name_denies_everything(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "svc * * * deny")
    with pytest.raises(PolicyError):
        PolicyFiles(tmp_path).current()


def test_what_cannot_be_read_denies_everything(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        PolicyFiles(tmp_path / "missing").current()
    (tmp_path / "10.policy").symlink_to("nowhere")
    with pytest.raises(PolicyError):
        PolicyFiles(tmp_path).current()
    (tmp_path / "10.policy").unlink()
    os.mkfifo(tmp_path / "10.policy")
    with pytest.raises(PolicyError):
        PolicyFiles(tmp_path).current()
    (tmp_path / "10.policy").unlink()
    (tmp_path / "10.policy").write_bytes(b"# ok\n\xff")
    with pytest.raises(PolicyError, match=r"^10\.policy:2: "):
        PolicyFiles(tmp_path).current()
    write(tmp_path / "10.policy", "!include gone")
    with pytest.raises(PolicyError, match=r"gone"):
        PolicyFiles(tmp_path).current()


def test_a_change_applies_to_the_next_call(tmp_path: Path) -> None:
    write(tmp_path / "10.policy", "!include extra/x")
    write(tmp_path / "extra/x", "svc * work vault allow")
    files = PolicyFiles(tmp_path)
    first = files.current()
    assert files.current() is first
    write(tmp_path / "extra/x", "svc * work vault deny")
    assert allowed(files.current()) is None
    write(tmp_path / "05.policy", "svc * work vault allow target=plain")
    assert allowed(files.current()) == "plain"
    (tmp_path / "05.policy").rename(tmp_path / "05.off")
    assert allowed(files.current()) is None
    new = tmp_path / "new"
    write(new, "svc * work vault allow")
    new.rename(tmp_path / "10.policy")
    assert allowed(files.current()) == "vault"


def test_the_default_policy_allows_nothing_that_nobody_was_asked_about(tmp_path: Path) -> None:
    write(tmp_path / "90-default.policy", default_policy())
    rules = PolicyFiles(tmp_path).current()
    assert rules.rules
    for rule in rules.rules:  # but for what a qube may tell the host of itself, and opening things in a disposable
        if rule.action == "allow":
            about_itself = str(rule.target) == "@adminvm" and (rule.service or "").startswith("qubes.")
            opened = str(rule.target) == "@dispvm" and rule.service in ("qubes.OpenInVM", "qubes.OpenURL")
            # A template has no network; its updates come through a net qube that fetches them, as in Qubes OS.
            updates = rule.service == "qubes.UpdatesProxy" and str(rule.target) == "@default"
            # The time is the host's to say, or the qube's that the host asks.
            date = rule.service == "qubes.GetDate" and str(rule.redirect) == "@adminvm"
            assert about_itself or opened or updates or date, str(rule)
    for service in ("qubes.Filecopy", "qubes.VMShell", "qubes.VMRootExec", "admin.vm.List", "any"):
        for target in REQUESTS:
            assert allowed(rules, target, call=service) is None
    write(tmp_path / "30-user.policy", "qubes.Filecopy * work vault allow")
    assert allowed(PolicyFiles(tmp_path).current(), call="qubes.Filecopy") == "vault"


def test_the_policy_of_qubes_os_is_understood() -> None:
    """Lines of the shapes that Qubes OS delivers: tabs, several blanks, long service names, host by its name."""
    rules = policy(
        "qubes.FeaturesRequest   *           @anyvm\t        dom0\t    allow",
        "admin.vm.volume.Set.revisions_to_keep   *\t@tag:backup-restore-mgmt @tag:in-progress allow target=dom0",
        "qubes.GetDate           *           @anyvm          @anyvm      allow target=dom0",
        "qubes.UpdatesProxy      *   @type:TemplateVM        @default    allow target=vault",
    )
    assert allowed(rules, "dom0", call="qubes.FeaturesRequest") == "@adminvm"
    assert allowed(rules, "", call="qubes.GetDate") == "@adminvm"
    assert allowed(rules, "", source="debian", call="qubes.UpdatesProxy") == "vault"
