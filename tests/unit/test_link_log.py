"""A link's log: what a qube has its link write fills no disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from casemate.link.log import LOG_BYTES, LOG_LINES_PER_SECOND

SCRIPT = """
import time
from casemate.link import log
log.LOG_LINES_PER_SECOND = int({lines})
say = log.Log("work")
for number in range({count}):
    say(f"{{number}} " + "x" * {length})
"""


def written(path: Path, **numbers: int) -> str:
    """The log after a process has said so many lines."""
    with open(path, "ab") as file:
        subprocess.run([sys.executable, "-c", SCRIPT.format(**numbers)], stderr=file, check=True)
    return path.read_text()


def test_a_full_log_begins_anew_and_has_the_newest(tmp_path: Path) -> None:
    text = written(tmp_path / "link.log", lines=10**9, count=5000, length=700)  # 3.6 MB
    assert len(text) <= LOG_BYTES
    assert "the log was full" in text.splitlines()[0] and f"work: {4999} x" in text.splitlines()[-1]


def test_a_flood_is_cut(tmp_path: Path) -> None:
    lines = written(tmp_path / "link.log", lines=LOG_LINES_PER_SECOND, count=1000, length=5).splitlines()
    # The thousand lines may fall into two seconds, or three on a busy machine.
    assert LOG_LINES_PER_SECOND <= len(lines) < 5 * LOG_LINES_PER_SECOND
