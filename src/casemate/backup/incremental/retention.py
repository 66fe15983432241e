"""Which backups are kept: so many of the last, and the newest of each of the last days, weeks, months and years."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from casemate.backup.errors import BackupError

RULES = ("last", "daily", "weekly", "monthly", "yearly")
MOST = 10_000


class RetentionError(BackupError):
    """Rules that cannot be meant."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The rules, with how many backups each keeps. A backup stays when one of them keeps it."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __bool__(self) -> bool:
        """Whether anything is kept at all."""
        return any(getattr(self, rule) for rule in RULES)

    def as_mapping(self) -> dict[str, int]:
        """The rules that keep something."""
        return {rule: getattr(self, rule) for rule in RULES if getattr(self, rule)}


def keep_from(found: object, what: str) -> Keep:
    """Rules as a profile has them: a mapping from ``last``, ``daily`` ... to numbers. RetentionError."""
    if not isinstance(found, Mapping):
        raise RetentionError(f"{what} is a mapping of {', '.join(RULES)} to numbers")
    for rule, count in found.items():
        if rule not in RULES or type(count) is not int or not 0 <= count <= MOST:
            raise RetentionError(f"{what} is a mapping of {', '.join(RULES)} to numbers from 0 to {MOST}")
    return Keep(**found)


_PERIODS: dict[str, Callable[[time.struct_time, int], object]] = {
    "last": lambda _when, number: number,
    "daily": lambda when, _number: (when.tm_year, when.tm_yday),
    "weekly": lambda when, _number: time.strftime("%G-%V", when),
    "monthly": lambda when, _number: (when.tm_year, when.tm_mon),
    "yearly": lambda when, _number: when.tm_year,
}


def kept(moments: Iterable[int], keep: Keep) -> set[int]:
    """Those of some times (seconds since 1970) that the rules keep. Days begin at midnight of the local time."""
    newest_first = sorted(set(moments), reverse=True)
    found: set[int] = set()
    for rule in RULES:
        seen: set[object] = set()
        for number, moment in enumerate(newest_first):
            period = _PERIODS[rule](time.localtime(moment), number)
            if period not in seen and len(seen) < getattr(keep, rule):
                seen.add(period)
                found.add(moment)
    return found
