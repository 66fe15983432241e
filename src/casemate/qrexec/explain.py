"""Explains a decision: the rule that decides, earlier rules that nearly fit, a rule that would change it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from casemate.qrexec.evaluate import Allow, Ask, Decision, QubeInfo, SystemInfo, evaluate
from casemate.qrexec.rules import Action, Policy, Rule
from casemate.qrexec.tokens import ADMIN, DEFAULT, DISPOSABLE, HOST, Kind, Token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USER_FILE = "30-user.policy"
"""Where a new rule is suggested when it may go anywhere before the one that decides."""
NEAR = 10
"""Rules that nearly fit, at most; more would hide the nearest ones."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and what a person may want to know about it."""

    decision: Decision
    near: tuple[tuple[Rule, str], ...]
    """Earlier rules that all but one word of fits, the last ones first, and why they do not."""
    line: str
    """A rule that would turn the decision round; empty where no rule can."""
    file: str
    before: int
    """The line must come before this one of the file; 0: anywhere in it."""


def explain(policy: Policy, info: SystemInfo, source: str, service: str, argument: str, target: str) -> Explanation:
    """Explain what ``evaluate`` says to the same arguments."""
    decision = evaluate(policy, info, source, service, argument, target)
    caller = info.find(HOST if source == ADMIN else source)
    limit = len(policy.rules) if decision.rule is None else decision.rule.order
    near = []
    if caller is not None:
        for rule in reversed(policy.rules[:limit]):
            misses = _misses(rule, info, caller, service, argument, target)
            if misses is not None and len(misses) == 1:
                near.append((rule, misses[0]))
                if len(near) == NEAR:
                    break
    line, file, before = _change(decision, info, caller, service, argument, target)
    return Explanation(decision, tuple(near), line, file, before)


def facts(found: Explanation) -> dict[str, Any]:
    """An explanation for JSON: ``verdict``, the ``rule`` that decides, those ``near`` to it, and the ``change`` that
    would turn the decision round (None where no rule can), with the name of its file."""
    rule = found.decision.rule
    return {
        "verdict": verdict(found.decision),
        "rule": None if rule is None else {"where": rule.location, "text": str(rule)},
        "near": [{"where": one.location, "text": str(one), "why": why} for one, why in found.near],
        "change": {"line": found.line, "file": found.file, "before": found.before} if found.line else None,
    }


def _change(
    decision: Decision, info: SystemInfo, caller: QubeInfo | None, service: str, argument: str, target: str
) -> tuple[str, str, int]:
    """A line that decides otherwise, and where it goes."""
    if caller is None:
        return "", "", 0
    wanted = "deny" if isinstance(decision, Allow) else "allow"
    name = _spelled(info, target)
    if name == DEFAULT and wanted == "allow":
        wanted = "allow target=QUBE"
    line = f"{service} {f'+{argument}' if argument else '*'} {HOST if caller.is_admin else caller.name} {name} {wanted}"
    rule = decision.rule
    place = (USER_FILE, 0) if rule is None or rule.file > USER_FILE else (rule.file, rule.line)
    if wanted == "deny" or name == DEFAULT:
        return line, *place
    # Some calls are denied whatever the rules say: of a qube to itself, to a template that makes no disposables. For
    # those no line is suggested. The test is a policy with one rule that allows everything.
    trial = Rule(0, USER_FILE, 1, service, None, Token(Kind.ALL), Token(Kind.ALL), Action.ALLOW)
    words = HOST if name == HOST else target
    if isinstance(evaluate(Policy([trial]), info, caller.name, service, argument, words), Allow):
        return line, *place
    return "", "", 0


def _spelled(info: SystemInfo, target: str) -> str:
    if target == ADMIN:
        return HOST
    if target.startswith("@"):
        return target
    found = info.find(target)
    return DEFAULT if found is None else found.name


def _misses(
    rule: Rule, info: SystemInfo, caller: QubeInfo, service: str, argument: str, target: str
) -> list[str] | None:
    """What of a rule does not fit; None for one about another service."""
    if rule.service is not None and rule.service != service:
        return None
    found = []
    if rule.argument is not None and rule.argument != argument:
        found.append(f"the argument is {f'+{argument}' if argument else 'empty'}, not +{rule.argument}")
    if str(rule.source) not in caller.source_words:
        found.append(f"the source {_why(rule.source, caller)}")
    spelled = _spelled(info, target)
    if spelled in (DEFAULT, DISPOSABLE):
        meant = info.find(caller.default_dispvm) if spelled == DISPOSABLE and caller.default_dispvm else None
    else:
        meant = info.find(spelled.removeprefix(DISPOSABLE + ":"))
    if not _target_fits(rule.target, spelled, meant):
        if spelled == DEFAULT:
            known = target == DEFAULT or info.find(target) is not None
            what = (
                "the call names no target" if known else "there is no such qube, so the call counts as without target"
            )
            found.append(f"{what}; the rule is for {rule.target}")
        elif spelled.startswith(DISPOSABLE):
            found.append(f"the target is a disposable ({spelled}), not {rule.target}")
        elif meant is not None:
            found.append(f"the target {_why(rule.target, meant)}")
    return found


def _target_fits(token: Token, spelled: str, meant: QubeInfo | None) -> bool:
    text = str(token)
    if meant is None or spelled == DEFAULT:
        return text in (spelled, Kind.ALL.value, Kind.ANY.value)
    if spelled.startswith(DISPOSABLE):
        return text in meant.disposable_words or text == spelled
    return text in meant.target_words


def _why(token: Token, qube: QubeInfo) -> str:
    """Why a token does not mean a qube."""
    if token.kind is Kind.TAG:
        return f"{qube.name} does not have the tag {token.value}"
    if token.kind is Kind.TYPE:
        return f"{qube.name} is of the class {qube.klass}, not {token.value}"
    return f"is {qube.name}, not {token}"


def verdict(decision: Decision) -> str:
    """The decision in a few words."""
    if isinstance(decision, Allow):
        to = HOST if decision.target == ADMIN else decision.target
        return f"allowed, goes to {decision.remote} through {to}" if decision.remote else f"allowed, goes to {to}"
    if isinstance(decision, Ask):
        default = f", {decision.default_target} offered" if decision.default_target else ""
        return f"a person is asked; may choose {', '.join(decision.targets)}{default}"
    return f"denied: {decision.reason}"
