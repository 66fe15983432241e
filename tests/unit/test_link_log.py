"""A link's log: what a qube has its link write fills no disk."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from casemate.link.log import LOG_BYTES, LOG_LINES_PER_SECOND, Log

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


def test_a_flood_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    log = Log("work")
    for number in range(LOG_LINES_PER_SECOND + 130):
        log(f"line {number}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == LOG_LINES_PER_SECOND and lines[-1].endswith(f"work: line {LOG_LINES_PER_SECOND - 1}")
    now += 1
    log("later")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("work: ")[2] for line in lines] == ["suppressed 130 lines", "later"]


def test_a_line_is_one_line_of_printable_text(capsys: pytest.CaptureFixture[str]) -> None:
    Log("work")("a\nb\x1b[2J\r\u202ec")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.isascii() and "\x1b" not in said and "\r" not in said
