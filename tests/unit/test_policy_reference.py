"""Random policies against an evaluator that is slow and plain to see through: every rule, every word, one by one."""

from __future__ import annotations

import string

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.qrexec.evaluate import Allow, Ask, Deny, QubeInfo, SystemInfo, evaluate
from casemate.qrexec.explain import explain
from casemate.qrexec.lint import hidden
from casemate.qrexec.parser import Parser
from casemate.qrexec.rules import Policy
from casemate.wire.errors import PolicyError
from casemate.wire.qrexec import requested_target

UUID = "00000000-0000-4000-8000-00000000000"
NIL = "00000000-0000-0000-0000-000000000000"
QUBES = [
    QubeInfo("dom0", "AdminVM", NIL, {"t1"}, power_state="Running"),
    QubeInfo("a", "AppVM", UUID + "1", {"t1"}, default_dispvm="d", power_state="Running"),
    QubeInfo("b", "AppVM", UUID + "2", {"t1", "t2"}, default_dispvm="a"),
    QubeInfo("c", "StandaloneVM", UUID + "3", (), internal=True),
    QubeInfo("d", "AppVM", UUID + "4", {"t2"}, default_dispvm="d", template_for_dispvms=True),
    QubeInfo("r", "RemoteVM", UUID + "5", {"t2"}, relayvm="b", transport_rpc="ssh.Call"),
    QubeInfo("s", "RemoteVM", UUID + "6"),
]
BY_NAME = {qube.name: qube for qube in QUBES}
INFO = SystemInfo.fixed(QUBES)

NAMES = ["a", "b", "c", "d", "r", "s", "dom0", "@adminvm", f"uuid:{UUID}2", f"uuid:{NIL}", "gone", f"uuid:{UUID}9"]
GROUPS = ["*", "@anyvm", "@type:AppVM", "@type:AdminVM", "@type:RemoteVM", "@tag:t1", "@tag:t2", "@tag:t3"]
DISPOSABLES = ["@dispvm", "@dispvm:a", "@dispvm:d", f"@dispvm:uuid:{UUID}4", "@dispvm:gone"]
SOURCES = [*NAMES, *GROUPS, "@dispvm:d", "@dispvm:@tag:t2"]
TARGETS = [*NAMES, *GROUPS, *DISPOSABLES, "@default", "@dispvm:@tag:t2", "@dispvm:@tag:t1"]
REDIRECTS = [*NAMES, *DISPOSABLES]
CALLERS = ["dom0", "a", "b", "c", "d", "r"]
REQUESTS = ["", *NAMES, *DISPOSABLES]


@st.composite
def a_rule(draw: st.DrawFn) -> str:
    service, argument = draw(st.sampled_from([("svc", "*"), ("svc", "+"), ("svc", "+x"), ("other", "*"), ("*", "*")]))
    source, target = draw(st.sampled_from(SOURCES)), draw(st.sampled_from(TARGETS))
    action = draw(st.sampled_from(["allow", "ask", "deny"]))
    words = [service, argument, source, target, action]
    if action != "deny":
        if draw(st.booleans()) or (action == "allow" and target == "@default"):
            words.append(f"target={draw(st.sampled_from(REDIRECTS))}")
        if draw(st.booleans()):
            words.append(f"user={draw(st.sampled_from(['root', 'user']))}")
        if draw(st.integers(0, 3)) == 0:
            words.append("autostart=no")
    if action == "ask" and draw(st.booleans()):
        words.append(f"default_target={draw(st.sampled_from(REDIRECTS))}")
    if draw(st.integers(0, 3)) == 0:
        words.append(f"notify={draw(st.sampled_from(['yes', 'no']))}")
    return " ".join(words)


# -- the reference: what the tables of the language say, with no thought for time


def plain(name: str) -> str:
    """A qube's name, however it is written; what does not exist as it is."""
    if name == "@adminvm":
        return "dom0"
    if name.startswith("uuid:"):
        return next((qube.name for qube in QUBES if f"uuid:{qube.uuid}" == name), name)
    return name


def source_fits(token: str, caller: QubeInfo) -> bool:
    if token == "*":
        return True
    if token == "@anyvm":
        return caller.name != "dom0"
    if token.startswith("@dispvm"):
        return False
    return qube_fits(token, caller)


def qube_fits(token: str, qube: QubeInfo) -> bool:
    if token.startswith("@type:"):
        return qube.klass == token[6:]
    if token.startswith("@tag:"):
        return token[5:] in qube.tags
    return plain(token) == qube.name


def template_of(wanted: str, caller: QubeInfo) -> QubeInfo | None:
    name = caller.default_dispvm if wanted == "@dispvm" else plain(wanted.removeprefix("@dispvm:"))
    return BY_NAME.get(name or "")


def target_fits(token: str, wanted: str, caller: QubeInfo) -> bool:
    """``wanted`` is a name, ``@default``, ``@dispvm`` or ``@dispvm:NAME``."""
    if token == "*":
        return True
    if token == "@anyvm":
        return wanted not in ("dom0", "@adminvm")
    if wanted == "@adminvm":  # asked for by the keyword, which no class and no tag means
        return plain(token) == "dom0"
    if wanted == "@default":
        return token == "@default"
    if wanted.startswith("@dispvm"):
        template = template_of(wanted, caller)
        if token.startswith("@dispvm:@tag:"):
            return template is not None and template.template_for_dispvms and token[13:] in template.tags
        if token == "@dispvm":
            return wanted == "@dispvm"
        return token.startswith("@dispvm:") and template is not None and plain(token[8:]) == template.name
    return not token.startswith("@dispvm") and token != "@default" and qube_fits(token, BY_NAME[wanted])


def reach(wanted: str, caller: QubeInfo, words: list[str]) -> str:
    """What comes of an allowed call to a target: the qube (``@dispvm:NAME``) that serves it, or ``deny``."""
    autostart = "autostart=no" not in words
    if wanted == "@default":
        return "deny"
    if wanted.startswith("@dispvm"):
        template = template_of(wanted, caller)
        good = template is not None and template.template_for_dispvms and autostart
        return f"@dispvm:{template.name}" if good and template is not None else "deny"
    qube = BY_NAME.get(plain(wanted))
    if qube is None or qube.name == caller.name:
        return "deny"
    if qube.klass == "RemoteVM":
        relay = BY_NAME.get(qube.relayvm or "")
        if relay is None or not qube.transport_rpc or relay.name == caller.name:
            return "deny"
        qube = relay
    return qube.name if autostart or qube.power_state == "Running" else "deny"


def expand(token: str, caller: QubeInfo) -> set[str]:
    """The targets that a token means in the list for ``ask``."""
    if token in ("@default", "@dispvm"):
        return {token} - {"@default"}
    if token.startswith("@dispvm") and not token.startswith("@dispvm:@tag:"):
        template = template_of(token, caller)
        return {f"@dispvm:{template.name}"} if template is not None and not template.internal else set()
    found = {"@dispvm"} if token in ("*", "@anyvm") else set()
    for qube in QUBES:
        if qube.internal:
            continue
        if target_fits(token, qube.name, caller) and qube.name != caller.name:
            found.add(qube.name)
        if qube.template_for_dispvms and target_fits(token, f"@dispvm:{qube.name}", caller):
            found.add(f"@dispvm:{qube.name}")
    return found


def rule_fits(words: list[str], argument: str, caller: QubeInfo) -> bool:
    return words[0] in ("*", "svc") and words[1] in ("*", f"+{argument}") and source_fits(words[2], caller)


def value(words: list[str], key: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{key}=")), None)


def reference(lines: list[str], source: str, argument: str, request: str) -> object:
    """``deny``; (allow, target, user); (ask, {choice: target}, default)."""
    caller = BY_NAME[source]
    wanted = request or "@default"
    if not wanted.startswith("@dispvm") and wanted != "@default":
        wanted = plain(wanted)
        if wanted not in BY_NAME:
            wanted = "@default"
    if wanted.startswith("@dispvm:"):
        template = template_of(wanted, caller)
        if template is None or not template.template_for_dispvms:
            return "deny"
    rules = [line.split() for line in lines]
    fitting = [words for words in rules if rule_fits(words, argument, caller)]
    asked = "@adminvm" if request == "@adminvm" else wanted
    first = next((words for words in fitting if target_fits(words[3], asked, caller)), None)
    if first is None or first[4] == "deny":
        return "deny"
    if first[4] == "allow":
        end = reach(value(first, "target") or wanted, caller, first)
        final = BY_NAME.get(plain(value(first, "target") or wanted))
        user = None if final is not None and final.klass == "RemoteVM" else value(first, "user")
        return "deny" if end == "deny" else ("allow", end, user)
    redirect = value(first, "target")
    if redirect is not None:
        if redirect.startswith("@dispvm"):
            template = template_of(redirect, caller)
            choices = {f"@dispvm:{template.name}"} if template is not None else set()
        else:
            choices = {plain(redirect)}
    else:
        choices = set()
        for words in reversed(fitting):
            if words[4] == "deny":
                choices -= expand(words[3], caller)
            else:
                to = value(words, "target")
                choices |= expand(to if to is not None else words[3], caller)
        if "@dispvm" in choices:
            choices.remove("@dispvm")
            template = template_of("@dispvm", caller)
            rule = next((words for words in fitting if target_fits(words[3], "@dispvm", caller)), None)
            if template is not None and (rule is None or rule[4] != "deny"):
                choices.add(f"@dispvm:{template.name}")
    ends = {choice: reach(choice, caller, first) for choice in choices}
    ends = {choice: end for choice, end in ends.items() if end != "deny"}
    if not ends:
        return "deny"
    default = value(first, "default_target")
    if default is not None:
        if default.startswith("@dispvm"):
            template = template_of(default, caller)
            default = f"@dispvm:{template.name}" if template is not None else None
        else:
            default = plain(default)
    return "ask", ends, default if default in ends else None


def told(decision: Allow | Ask | Deny) -> object:
    """A decision in the reference's words."""

    def end(allow: Allow) -> str:
        return "dom0" if allow.target == "@adminvm" else allow.target

    if isinstance(decision, Allow):
        return "allow", end(decision), decision.user
    if isinstance(decision, Ask):
        ends = {choice: end(allow) for choice, allow in decision.final.items()}
        assert tuple(sorted(ends)) == decision.targets
        return "ask", ends, decision.default_target
    return "deny"


def parsed(lines: list[str]) -> Policy:
    parser = Parser()
    parser.parse("x.policy", "\n".join(lines))
    return Policy(parser.rules)


@settings(max_examples=400, deadline=None)
@given(st.lists(a_rule(), max_size=12), st.sampled_from(CALLERS), st.sampled_from(["", "x", "y"]))
def test_decisions_are_those_of_the_reference(lines: list[str], source: str, argument: str) -> None:
    policy = parsed(lines)
    for request in REQUESTS:
        found = evaluate(policy, INFO, source, "svc", argument, requested_target(request))
        assert told(found) == reference(lines, source, argument, request), (lines, source, argument, request)


@settings(max_examples=100, deadline=None)
@given(st.lists(a_rule(), max_size=12), st.sampled_from(CALLERS), st.sampled_from(REQUESTS))
def test_explaining_decides_the_same_and_its_line_changes_it(lines: list[str], source: str, request: str) -> None:
    policy = parsed(lines)
    target = requested_target(request)
    found = explain(policy, INFO, source, "svc", "x", target)
    assert found.decision == evaluate(policy, INFO, source, "svc", "x", target)
    for rule, why in found.near:
        assert why and rule is not found.decision.rule
        assert found.decision.rule is None or rule.order < found.decision.rule.order
    if found.line and "target=QUBE" not in found.line:
        # Alone before everything else it decides, and otherwise than before.
        now = evaluate(parsed([found.line, *lines]), INFO, source, "svc", "x", target)
        assert isinstance(now, Deny) == isinstance(found.decision, Allow), (found.line, lines)


@settings(max_examples=200, deadline=None)
@given(st.lists(a_rule(), max_size=10))
def test_rules_that_lint_calls_hidden_decide_nothing(lines: list[str]) -> None:
    policy = parsed(lines)
    never = {rule.order for rule, _before in hidden(policy.rules)}
    for source in CALLERS:
        for request in REQUESTS:
            for argument in ("", "x", "z"):
                for service in ("svc", "other", "third"):
                    rule = evaluate(policy, INFO, source, service, argument, requested_target(request)).rule
                    assert rule is None or rule.order not in never


@settings(max_examples=200, deadline=None)
@given(st.lists(a_rule(), max_size=10))
def test_a_rule_reads_again_as_it_is_written(lines: list[str]) -> None:
    once = parsed(lines)
    again = parsed([str(rule) for rule in once.rules])
    assert once.rules == again.rules


_KEYWORDS = ["svc", "*", "+", "+x", "allow", "ask", "deny", "target=a", "user=b", "x=y", "notify=yes", "#", ""]
_WORDS = st.sampled_from([*_KEYWORDS, *SOURCES, *TARGETS, "!include", "!compat-4.0"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.one_of(_WORDS, st.text(string.printable, max_size=8)), max_size=8), max_size=5))
def test_any_line_is_rules_or_an_error_with_its_place(lines: list[list[str]]) -> None:
    text = "\n".join(" ".join(words).replace("\n", " ").replace("\r", " ") for words in lines)
    try:
        found = parsed(text.split("\n"))
    except PolicyError as error:
        place = str(error).split(":")
        assert place[0] == "x.policy" and 1 <= int(place[1]) <= len(lines)
        wrong = Parser().check("x.policy", text)
        assert wrong[0] == str(error)
    else:
        assert len(found.rules) <= len(lines) and Parser().check("x.policy", text) == []
