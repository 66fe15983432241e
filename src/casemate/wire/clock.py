"""The text in which the time travels (``qubes.GetDate``), and how far a clock may be set at once.

The text is ISO 8601 in UTC, to the second (``2026-01-31T23:59:59+00:00``) or with nanoseconds after a comma. That is
what ``date -Iseconds`` and ``date -Ins`` print, and what the programs of Qubes OS expect.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from casemate.wire.errors import CasemateError, ProtocolError

SERVICE = "qubes.GetDate"
NANOSECONDS = "nanoseconds"
"""Argument of the service for a text with nanoseconds. Any other argument than none means the same, as upstream."""
MAX_DATE = 64
"""Limit of a call (bytes): the answer of ``qubes.GetDate``. The longer of the two texts has 36 with its line feed."""
EARLIEST = 1_793_491_200  # 2026-11-01T00:00:00+00:00
"""Seconds since 1970. No right clock shows a time before this program was written; an empty battery does."""
MAX_STEP = 86400
"""Seconds by which a clock is set without being told twice. A clock that drifts, or a machine that slept over night, is
off by less; a time further off is more likely wrong or a lie, and would make certificates valid or expired."""
_SECOND = 1_000_000_000
_DATE = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[,.](\d{9}))?\+00:00\n")


class ClockError(CasemateError):
    """A time that a clock must not be set to."""


def format_date(moment: int, nanoseconds: bool) -> str:
    """A time, in nanoseconds since 1970, as a line of text."""
    seconds, rest = divmod(moment, _SECOND)
    fraction = f",{rest:09}" if nanoseconds else ""
    return time.strftime(f"%Y-%m-%dT%H:%M:%S{fraction}+00:00\n", time.gmtime(seconds))


def parse_date(untrusted: bytes) -> int:
    """The time that a line of text says, in nanoseconds since 1970; ProtocolError for any other text."""
    found = _DATE.fullmatch(untrusted)
    if found is None:
        raise ProtocolError("the answer is not a date")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    try:
        whole = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise ProtocolError("the answer is not a date") from None
    return int(whole.timestamp()) * _SECOND + int(found[7] or 0)


def check_step(now: int, wanted: int, force: bool = False) -> None:
    """Refuse a time that is surely wrong, or so far from ``now`` that it probably is; both in nanoseconds since 1970.

    ``force`` allows a step of any length. ClockError says both times.
    """
    if wanted < EARLIEST * _SECOND:
        raise ClockError(f"{_shown(wanted)} is not the time: this program is younger than that")
    if not force and abs(wanted - now) > MAX_STEP * _SECOND:
        raise ClockError(
            f"the time would change from {_shown(now)} to {_shown(wanted)}, by more than a day; "
            "if that is right, use --force"
        )


def _shown(moment: int) -> str:
    return format_date(moment, False).strip()
