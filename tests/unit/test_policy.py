"""The policy: its language, every token and action, its files, and that a decision does not depend on its size."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.qrexec import tokens
from casemate.qrexec.evaluate import Allow, Ask, Decision, Deny, QubeInfo, SystemInfo, evaluate
from casemate.qrexec.files import PolicyFiles, default_policy
from casemate.qrexec.parser import Includes, Parser
from casemate.qrexec.rules import Policy
from casemate.wire.errors import PolicyError, ValueInvalidError
from casemate.wire.qrexec import requested_target

UUID = "00000000-0000-4000-8000-00000000000"
WORK = QubeInfo("work", "AppVM", UUID + "1", {"office"}, default_dispvm="dvm", power_state="Running")
VAULT = QubeInfo("vault", "AppVM", UUID + "2", {"secret"}, default_dispvm="plain")
DVM = QubeInfo("dvm", "AppVM", UUID + "3", {"base"}, template_for_dispvms=True)
PLAIN = QubeInfo("plain", "AppVM", UUID + "4", {"base"})
DEBIAN = QubeInfo("debian", "TemplateVM", UUID + "5")
DOM0 = QubeInfo("dom0", "AdminVM", "00000000-0000-0000-0000-000000000000", {"trusted"}, power_state="Running")
INFO = SystemInfo.fixed([WORK, VAULT, DVM, PLAIN, DEBIAN, DOM0])


def policy(*lines: str) -> Policy:
    parser = Parser()
    parser.parse("test.policy", "\n".join(lines))
    return Policy(parser.rules)


def ask(rules: Policy | str, target: str = "vault", source: str = "work", call: str = "svc+arg") -> Decision:
    if isinstance(rules, str):
        rules = policy(rules)
    service, _, arg = call.partition("+")
    return evaluate(rules, INFO, source, service, arg, requested_target(target))


def allowed(*args: str, **kwargs: str) -> str | None:
    """The target that the call goes to, or None."""
    result = ask(*args, **kwargs)
    return result.target if isinstance(result, Allow) else None


SOURCES = {
    "work": {"work"},
    f"uuid:{UUID}1": {"work"},
    "*": {"work", "vault", "dvm", "debian", "dom0"},
    "@anyvm": {"work", "vault", "dvm", "debian"},
    "@adminvm": {"dom0"},
    "dom0": {"dom0"},
    "uuid:00000000-0000-0000-0000-000000000000": {"dom0"},
    "@type:AppVM": {"work", "vault", "dvm"},
    "@type:TemplateVM": {"debian"},
    "@type:AdminVM": {"dom0"},
    "@tag:office": {"work"},
    "@tag:trusted": {"dom0"},
    "@tag:none": set(),
    "@dispvm:dvm": set(),
    "@dispvm:@tag:base": set(),
    "other": set(),
}


@pytest.mark.parametrize("token", SOURCES)
def test_source_tokens(token: str) -> None:
    rules = policy(f"svc * {token} * allow target=plain")
    found = {q for q in ("work", "vault", "dvm", "debian", "dom0") if allowed(rules, "plain", source=q)}
    assert found == SOURCES[token]


REQUESTS = ("vault", "dom0", "@default", "@dispvm", "@dispvm:dvm", "debian", "missing", f"uuid:{UUID}2", "@adminvm")
TARGETS = {
    "vault": {"vault", f"uuid:{UUID}2"},
    f"uuid:{UUID}2": {"vault", f"uuid:{UUID}2"},
    "*": set(REQUESTS),
    "@anyvm": set(REQUESTS) - {"dom0", "@adminvm"},
    "@adminvm": {"dom0", "@adminvm"},
    "dom0": {"dom0", "@adminvm"},
    "@type:AppVM": {"vault", f"uuid:{UUID}2"},
    "@type:AdminVM": {"dom0", "@adminvm"},
    "@tag:secret": {"vault", f"uuid:{UUID}2"},
    "@tag:trusted": {"dom0", "@adminvm"},
    "@tag:base": set(),
    "@default": {"@default", "missing"},
    "@dispvm": {"@dispvm"},
    "@dispvm:dvm": {"@dispvm", "@dispvm:dvm"},
    f"@dispvm:uuid:{UUID}3": {"@dispvm", "@dispvm:dvm"},
    "@dispvm:other": set(),
    "@dispvm:@tag:base": {"@dispvm", "@dispvm:dvm"},
    "@dispvm:@tag:secret": set(),
    "missing": set(),
}


@pytest.mark.parametrize("token", TARGETS)
def test_target_tokens(token: str) -> None:
    rules = policy(f"svc * work {token} allow target=plain")
    assert {request for request in REQUESTS if allowed(rules, request)} == TARGETS[token]


@pytest.mark.parametrize(
    ("redirect", "final"),
    [
        ("vault", "vault"),
        (f"uuid:{UUID}2", "vault"),
        ("dom0", "@adminvm"),
        ("@adminvm", "@adminvm"),
        ("@dispvm", "@dispvm:dvm"),
        ("@dispvm:dvm", "@dispvm:dvm"),
        ("@dispvm:plain", None),
        ("@dispvm:missing", None),
        ("missing", None),
        ("work", None),
        (f"uuid:{UUID}1", None),
    ],
)
def test_redirects(redirect: str, final: str | None) -> None:
    assert allowed(f"svc * work @default allow target={redirect}", "") == final


def test_requests_for_disposables() -> None:
    assert allowed("svc * @anyvm @dispvm allow", "@dispvm") == "@dispvm:dvm"
    assert allowed("svc * @anyvm @dispvm allow", "@dispvm", source="vault") is None  # its default is no such template
    assert allowed("svc * @anyvm @dispvm allow", "@dispvm", source="plain") is None  # it has no default
    assert allowed("* * * * allow", "@dispvm:plain") is None
    assert allowed("* * * * allow", "@dispvm:missing") is None
    assert allowed("* * * * allow", f"@dispvm:uuid:{UUID}3") == "@dispvm:dvm"
    assert allowed("* * * * allow", "@dispvm:dvm", source="dvm") == "@dispvm:dvm"


def test_a_call_without_target_goes_nowhere_by_itself() -> None:
    assert allowed("* * * * allow", "") is None
    assert allowed("* * * * allow", "missing") is None
    with pytest.raises(PolicyError):
        policy("svc * * @default allow")


def test_nobody_calls_itself() -> None:
    assert allowed("* * * * allow", "work") is None
    assert allowed("* * * * allow", f"uuid:{UUID}1") is None
    assert allowed("* * * * allow", "dom0", source="dom0") is None
    assert allowed("* * * * allow", "vault", source="missing") is None


def test_actions() -> None:
    result = ask("svc * work vault allow user=root notify=yes autostart=yes")
    assert isinstance(result, Allow) and (result.user, result.notify, result.autostart) == ("root", True, True)
    result = ask("svc * work vault allow")
    assert isinstance(result, Allow) and (result.user, result.notify, result.autostart) == (None, False, True)
    assert result.rule.location == "test.policy:1"
    result = ask("svc * work vault deny")
    assert isinstance(result, Deny) and result.notify and "test.policy:1" in result.reason
    result = ask("svc * work vault deny notify=no")
    assert isinstance(result, Deny) and not result.notify
    result = ask("svc * work vault ask default_target=vault target=vault")
    assert isinstance(result, Ask) and (result.targets, result.default_target) == (("vault",), "vault")
    result = ask("other * * * allow")
    assert isinstance(result, Deny) and result.rule is None


def test_autostart() -> None:
    assert allowed("svc * * * allow autostart=no", "vault") is None
    assert allowed("svc * * * allow autostart=no", "work", source="vault") == "work"
    assert allowed("svc * * * allow autostart=no", "dom0") == "@adminvm"
    assert allowed("svc * * * allow autostart=no", "@dispvm") is None


@pytest.mark.parametrize(
    ("rule", "call", "fits"),
    [
        ("svc *", "svc+arg", True),
        ("svc *", "svc+", True),
        ("svc +", "svc+", True),
        ("svc +", "svc+arg", False),
        ("svc +arg", "svc+arg", True),
        ("svc +arg", "svc+", False),
        ("svc +arg", "svc+arg2", False),
        ("* *", "any+thing", True),
        ("svc *", "svc2+", False),
    ],
)
def test_services_and_arguments(rule: str, call: str, fits: bool) -> None:
    assert (allowed(f"{rule} work vault allow", call=call) == "vault") == fits


def test_the_first_rule_that_fits_decides() -> None:
    lines = [
        "svc +other * * deny",
        "svc * @tag:secret * deny",
        "svc +arg work @type:AppVM allow target=plain",
        "* * * * deny",
        "svc +arg work vault allow",
    ]
    assert allowed(policy(*lines)) == "plain"
    assert allowed(policy(*lines[::-1])) == "vault"
    assert allowed(policy(*lines[3:])) is None
    mixed = policy("svc * work @anyvm deny", "svc +arg work vault allow", "* * work vault allow")
    assert allowed(mixed) is None


@given(st.lists(st.tuples(st.sampled_from(list(SOURCES)), st.sampled_from(list(TARGETS)), st.booleans()), max_size=8))
def test_the_index_finds_what_a_walk_over_all_rules_finds(rules: list[tuple[str, str, bool]]) -> None:
    whole = policy(*(f"svc * {s} {t} {'allow target=plain' if yes else 'deny'}" for s, t, yes in rules))
    for source in ("work", "vault", "debian", "dom0"):
        for request in REQUESTS:
            alone = [policy(f"svc * {s} {t} allow target=plain") for s, t, _ in rules]
            if not allowed("svc * * * allow target=plain", request, source=source):
                continue
            expected = next(
                (yes for one, (_, _, yes) in zip(alone, rules) if allowed(one, request, source=source)), False
            )
            assert (allowed(whole, request, source=source) is not None) == expected


def test_a_decision_does_not_depend_on_the_number_of_rules() -> None:
    lines = [f"svc{i % 50} +a{i} qube{i} target{i} allow" for i in range(20000)] + ["svc +arg work vault allow"]
    lines += [f"svc * other{i} vault deny" for i in range(5000)]
    big = policy(*lines)
    assert allowed(big) == "vault"
    assert [rule.line for rule in big.of_source("svc", "arg", ["work"])] == [20001]
    start = time.perf_counter()
    for _ in range(200):
        ask(big)
    assert time.perf_counter() - start < 1.0


# -- language


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
        "svc * @dispvm:dom0 vault allow",
        "svc * @tag: vault allow",
        "svc * @tag:a/b vault allow",
        "svc * @type: vault allow",
        "svc * @any vault allow",
        "svc * work @foo allow",
        "svc * work uuid:1 allow",
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


# -- files


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
            assert about_itself or opened, str(rule)
    for service in ("qubes.Filecopy", "qubes.VMShell", "qubes.VMRootExec", "admin.vm.List", "any"):
        for target in REQUESTS:
            assert allowed(rules, target, call=service) is None
    write(tmp_path / "30-user.policy", "qubes.Filecopy * work vault allow")
    assert allowed(PolicyFiles(tmp_path).current(), call="qubes.Filecopy") == "vault"


def test_the_default_disposable_is_forbidden_apart_from_the_named_ones() -> None:
    found = ask(policy("svc * work @dispvm deny", "svc * work @dispvm:dvm ask"), "@dispvm:dvm")
    assert isinstance(found, Ask) and found.targets == ("@dispvm:dvm",)
    found = ask(policy("svc * work @dispvm:dvm deny", "svc * work @dispvm ask", "svc * work vault ask"), "vault")
    assert isinstance(found, Ask) and found.targets == ("vault",)
    found = ask(policy("svc * work @dispvm ask", "svc * work vault ask"), "vault")
    assert isinstance(found, Ask) and found.targets == ("@dispvm:dvm", "vault")


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
