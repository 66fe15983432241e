"""Rules of the policy, and the index that finds the first one that fits without looking at the others."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter

from casemate.qrexec.tokens import Kind, Token


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
    def place(self) -> str:
        """``file:line``, for the log."""
        return f"{self.file}:{self.line}"


_order = attrgetter("order")
_Key = tuple[str | None, str | None, str | None, str | None]


def _literal(token: Token) -> str | None:
    return token.value if token.kind is Kind.EXACT else None


class Policy:
    """All rules in order.

    They are indexed by service, argument, source and target, where each is a literal or "not a literal": a decision
    costs a few look-ups and the rules that are written with groups, however many rules name other qubes and services.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._index: dict[_Key, list[Rule]] = {}
        for rule in self.rules:
            key = (rule.service, rule.argument, _literal(rule.source), _literal(rule.target))
            self._index.setdefault(key, []).append(rule)

    def candidates(self, service: str, argument: str, sources: Iterable[str], targets: Iterable[str]) -> Iterator[Rule]:
        """Rules that may fit, in order. ``sources`` and ``targets`` are all literals that mean them.

        Literals of a candidate fit already; its groups are still to be compared.
        """
        from_keys: list[str | None] = [*sources, None]
        to_keys: list[str | None] = [*targets, None]
        found = []
        for name, arg in ((service, argument), (service, None), (None, None)):
            for source in from_keys:
                for target in to_keys:
                    rules = self._index.get((name, arg, source, target))
                    if rules is not None:
                        found.append(rules)
        return iter(found[0]) if len(found) == 1 else iter(heapq.merge(*found, key=_order))
