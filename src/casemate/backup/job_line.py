"""The lines of JSON between the daemon and a process that makes a backup for it, at that process's end."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from casemate.backup.errors import BackupError

_PROGRESS_SECONDS = 0.5


def order() -> dict[str, Any]:
    """The first line of all."""
    found: dict[str, Any] = json.loads(sys.stdin.readline())
    return found


def say(**message: object) -> None:
    """Tell the daemon."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def ask(**message: object) -> dict[str, Any]:
    """Tell the daemon, and wait for its answer. BackupError with its reason, or when it has gone."""
    say(**message)
    line = sys.stdin.readline()
    if not line:
        raise BackupError("the daemon has gone")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise BackupError(str(answer["error"]))
    return answer


class Progress:
    """Adds bytes up and tells of them now and then."""

    def __init__(self) -> None:
        self._total = 0
        self._next = 0.0

    def __call__(self, count: int) -> None:
        """So many more bytes are done."""
        self._total += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            say(progress=self._total)
