"""Finds rules that can never decide anything because an earlier one always fits first. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.qrexec.rules import Policy, Rule, choices
from casemate.qrexec.tokens import ADMIN, Kind, Token


def _wider(token: Token) -> Iterator[str]:
    """Tokens that mean at least what this one means."""
    yield str(token)
    if token.kind is not Kind.ALL:
        yield Kind.ALL.value
    # A tag may be the host's too, so "every qube" is less than that.
    never_host = token.kind is Kind.DISPOSABLE_TAG or (token.kind is Kind.EXACT and token.value != ADMIN)
    if never_host or (token.kind is Kind.TYPE and token.value != "AdminVM"):
        yield Kind.ANY.value


def hidden(rules: tuple[Rule, ...]) -> Iterator[tuple[Rule, Rule]]:
    """Rules that never decide, each with an earlier one that fits whatever it would fit."""
    policy = Policy(rules)
    for rule in policy.rules:
        found: Rule | None = None
        for choice in choices(rule.service or "", rule.argument or ""):
            if (rule.argument is None and choice[1] is not None) or (rule.service is None and choice[0] is not None):
                continue  # narrower than the rule itself
            one = policy.exact(choice, tuple(_wider(rule.source)), tuple(_wider(rule.target)))
            if one is not None and (found is None or one.order < found.order):
                found = one
        if found is not None and found.order < rule.order:
            yield rule, found
