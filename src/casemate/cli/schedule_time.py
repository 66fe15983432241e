"""When a scheduled backup runs: the words that both systemd and cron know, and systemd's calendar expressions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime

from casemate.backup.schedule import ScheduleError
from casemate.wire.errors import printable

WORDS = {"hourly": 3600, "daily": 24 * 3600, "weekly": 7 * 24 * 3600}
"""Words that need no systemd, with their periods in seconds."""
_ITERATIONS = 20
"""How many future runs are looked at for the longest time between two of them."""
_LONGEST = 256
"""Characters of a calendar expression."""
_SECONDS = 30
"""How long systemd-analyze may take. It needs a few milliseconds."""
_MOMENT = re.compile(r"(?:Next elapse|Iter\. #\d+|Iteration #\d+): \w+ (\d+-\d+-\d+ \d+:\d+:\d+) UTC")


@dataclass(frozen=True, slots=True)
class When:
    """A time that comes again and again."""

    said: str
    """As the user said it."""
    expression: str
    """As systemd's OnCalendar takes it. Has no line ends: systemd has written it, or it is one of WORDS."""
    period: int
    """Seconds: the longest time between two runs."""


def understood(text: str) -> When:
    """What a user means by WHEN. Raises ScheduleError when that cannot be understood or does not recur.

    systemd-analyze, a program of systemd, reads calendar expressions and tells the next times (systemd.time(7)).
    """
    if text in WORDS:
        return When(text, text, WORDS[text])
    shown = printable(text, 80)
    if not text.strip() or len(text) > _LONGEST or not text.isprintable():
        raise ScheduleError(f"{shown!r} is no time: say {', '.join(WORDS)} or a calendar expression of systemd")
    program = shutil.which("systemd-analyze")
    if program is None:
        raise ScheduleError(
            f"{shown!r} cannot be understood: without systemd on this host only {', '.join(WORDS)} are possible"
        )
    try:
        done = subprocess.run(
            [program, "calendar", f"--iterations={_ITERATIONS}", "--", text], check=False, capture_output=True,
            text=True, timeout=_SECONDS, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScheduleError(f"systemd-analyze did not read {shown!r}: {error}") from None
    normalized = re.search(r"Normalized form: (.+)", done.stdout)
    if done.returncode != 0 or normalized is None:
        raise ScheduleError(f"systemd does not understand {shown!r}: see systemd.time(7) for calendar expressions")
    moments = [datetime.fromisoformat(found) for found in _MOMENT.findall(done.stdout)]
    gaps = [(later - earlier).total_seconds() for earlier, later in zip(moments, moments[1:], strict=False)]
    if not gaps:
        raise ScheduleError(f"{shown!r} does not come again and again, so it is no schedule")
    return When(text, normalized[1].strip(), int(max(gaps)))
