"""A file of more than 400 lines says at its head why it is one file."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
LONG = 400
REASON = "One file although it is long"
HEAD = 2500
"""Characters at the beginning of a file in which the reason stands."""


def test_long_files_say_why() -> None:
    # The modules of the manager page too; those that others wrote have one line.
    found = [
        *ROOT.glob("src/**/*.py"), *ROOT.glob("src/**/*.c"), *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("src/casemate/web/static/*.js"),
    ]  # fmt: skip
    assert len(found) > 300
    silent = []
    for path in found:
        text = path.read_text()
        if text.count("\n") > LONG and REASON not in text[:HEAD]:
            silent.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
    assert not silent, silent
