"""Decisions of the policy: sources, targets, actions, the first rule that fits; beside a plain walk over all rules."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.qrexec.evaluate import Allow, Ask, Decision, Deny, QubeInfo, SystemInfo, evaluate
from casemate.qrexec.parser import Parser
from casemate.qrexec.rules import Policy
from casemate.wire.errors import PolicyError
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
    "@type:AdminVM": {"dom0"},
    "@tag:secret": {"vault", f"uuid:{UUID}2"},
    "@tag:trusted": {"dom0"},
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
    # A qube that does not exist counts as no target, so a caller cannot find out by this rule which exist.
    assert allowed("svc * * @default allow target=vault", "missing") == "vault"
    assert allowed("svc * * missing allow target=vault", "missing") is None
    with pytest.raises(PolicyError):
        policy("svc * * @default allow")


def test_who_asks_for_itself_is_judged_by_the_rules() -> None:
    """As for upstream: a rule may send the call elsewhere, a person may choose another target."""
    assert allowed("svc * work @anyvm allow target=vault", "work") == "vault"
    assert allowed("svc * work work allow target=@dispvm:dvm", f"uuid:{UUID}1") == "@dispvm:dvm"
    assert allowed("svc * work @anyvm allow target=work", "vault") is None
    found = ask("svc * work @type:AppVM ask", "work")
    assert isinstance(found, Ask) and "work" not in found.targets and "vault" in found.targets
    denied = ask("svc * work @anyvm deny notify=no", "work")
    assert isinstance(denied, Deny) and not denied.notify


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


def test_the_default_disposable_is_forbidden_apart_from_the_named_ones() -> None:
    found = ask(policy("svc * work @dispvm deny", "svc * work @dispvm:dvm ask"), "@dispvm:dvm")
    assert isinstance(found, Ask) and found.targets == ("@dispvm:dvm",)
    found = ask(policy("svc * work @dispvm:dvm deny", "svc * work @dispvm ask", "svc * work vault ask"), "vault")
    assert isinstance(found, Ask) and found.targets == ("vault",)
    found = ask(policy("svc * work @dispvm ask", "svc * work vault ask"), "vault")
    assert isinstance(found, Ask) and found.targets == ("@dispvm:dvm", "vault")
