"""Rules of the policy, and the index that finds the first one that fits without looking at the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter

from casemate.qrexec.tokens import Token


class Action(StrEnum):
    """What a rule does."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the policy. ``service`` and ``argument`` are None for ``*``."""

    order: int
    file: str
    line: int
    service: str | None
    argument: str | None
    source: Token
    target: Token
    action: Action
    redirect: str | None = None
    default_target: str | None = None
    user: str | None = None
    notify: bool = False
    autostart: bool = True

    @property
    def location(self) -> str:
        """``file:line``, for the log."""
        return f"{self.file}:{self.line}"

    def __str__(self) -> str:
        """The rule as it would be written."""
        argument = "*" if self.argument is None else f"+{self.argument}"
        words = [self.service or "*", argument, str(self.source), str(self.target), str(self.action)]
        return " ".join(words + self.parameters())

    def parameters(self) -> list[str]:
        """What the rule says besides the action, where it is not the default."""
        found = [
            f"{key}={value}"
            for key, value in (("target", self.redirect), ("default_target", self.default_target), ("user", self.user))
            if value is not None
        ]
        if self.notify != (self.action is Action.DENY):
            found.append(f"notify={'yes' if self.notify else 'no'}")
        return found if self.autostart else [*found, "autostart=no"]


Choice = tuple[str | None, str | None]
"""Service and argument as a rule has them, None for ``*``."""


def choices(service: str, argument: str) -> tuple[Choice, Choice, Choice]:
    """What a rule may say of service and argument to fit a call."""
    return (service, argument), (service, None), (None, None)


class Policy:
    """All rules in order, and where to find those that fit.

    The index is a tree of dictionaries: service and argument, then source, then target, each as the rule spells it. For
    a call, all words are known by which a rule could mean its source and its target (name, UUID, tags, class ...). A
    decision looks these words up and takes the first rule found, so its cost does not grow with the number of rules.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self._index: dict[Choice, dict[str, dict[str, list[Rule]]]] = {}
        for rule in self.rules:
            by_source = self._index.setdefault((rule.service, rule.argument), {})
            by_target = by_source.setdefault(str(rule.source), {})
            by_target.setdefault(str(rule.target), []).append(rule)

    def first(self, service: str, argument: str, sources: Iterable[str], targets: Iterable[str]) -> Rule | None:
        """The first rule that fits. ``sources`` and ``targets`` are all words that mean them."""
        words = tuple(sources), tuple(targets)
        best: Rule | None = None
        for choice in choices(service, argument):
            found = self.exact(choice, *words)
            if found is not None and (best is None or found.order < best.order):
                best = found
        return best

    def exact(self, choice: Choice, sources: Iterable[str], targets: Iterable[str]) -> Rule | None:
        """The first rule that has just this service and argument, one of the sources and one of the targets."""
        by_source = self._index.get(choice)
        if by_source is None:
            return None
        best: Rule | None = None
        for source in sources:
            by_target = by_source.get(source)
            if by_target is not None:
                for target in targets:
                    found = by_target.get(target)
                    if found is not None and (best is None or found[0].order < best.order):
                        best = found[0]
        return best

    def of_source(self, service: str, argument: str, sources: Iterable[str]) -> list[Rule]:
        """All rules, in order, for any target."""
        found: list[Rule] = []
        for choice in choices(service, argument):
            by_source = self._index.get(choice, {})
            for source in sources:
                for rules in by_source.get(source, {}).values():
                    found += rules
        return sorted(found, key=_order)

    def services(self) -> list[tuple[str, str]]:
        """Each service and argument that a rule names, sorted; empty for ``*``, which means all others."""
        return sorted({(service or "", argument or "") for service, argument in self._index})


_order = attrgetter("order")
