"""``python -m tests.bench.completion``: a press of Tab in bash and zsh, with a hundred qubes.

With ``--write`` the table goes to docs/reference/performance.md, section "Completion".
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from pexpect.fdpexpect import fdspawn

import casemate
from casemate.cli import completion
from tests.bench.figures import Row, host, middle, percentile, seconds, table, write
from tests.builders import short_directory
from tests.component.test_completion import SETUP, environment
from tests.fakes.shell import found_by_tools
from tests.terminal import on_terminal

QUBES = 100
PRESSES = 60
AIM = 0.05
LINES = {
    "an option": "qvm-ls --raw-l",
    "a qube that is halted": "qvm-start last",
    "a property of a qube": "qvm-prefs q000 provides_n",
    "a value of a property": "qvm-prefs q000 label gree",
    "a volume": "qvm-volume info q000:pri",
}


def press(child: fdspawn, line: str, key: str = "\t") -> float:
    """Type a line and a key; seconds until what became of the line is there."""
    begin = time.perf_counter()
    child.send(f"\x15{line}{key}\x18p")
    child.expect("LINE<(.*?)>")
    took = time.perf_counter() - begin
    assert child.match is not None and (not key or len(child.match[1]) > len(line)), child.match
    return took


def measure() -> list[Row]:
    """The rows of the table."""
    rows = []
    with pytest.MonkeyPatch.context() as patch, short_directory() as state, found_by_tools(state, patch):
        app = casemate.Qubes()
        app.create("deb", "TemplateVM", label="black")
        for number in range(QUBES):
            app.create(f"q{number:03}", template="deb")
        app.create("last-one", template="deb")
        completion.write(state / "completion")
        (state / "home").mkdir()
        for name in SETUP:
            argv, *setup = SETUP[name]
            with on_terminal(argv, environment(state), state / "home") as child:
                for line in (*setup, "echo REA''DY"):
                    child.sendline(line.format(state=state))
                child.expect("READY")
                for what, line in LINES.items():
                    tabs, none, bare = [], [], []
                    for _ in range(PRESSES):
                        tabs.append(press(child, line))
                        none.append(press(child, line, ""))
                        begin = time.perf_counter()
                        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
                        bare.append(time.perf_counter() - begin)
                    took, limit = middle(tabs) - middle(none), middle(bare)
                    worst = percentile(tabs, 95)
                    rows.append(Row(
                        f"{name}: {what}, p50 and p95", f"{seconds(took)}, {seconds(worst)}",
                        f"bare Python {seconds(limit)}", f"{took / limit:.1f}", f"p50 ≤ {seconds(AIM)}", took <= AIM,
                        f"A line is typed into the shell on a terminal, then Tab, {PRESSES} times; from the first "
                        "character until the shell prints what the line became, less the same without Tab (p50).",
                    ))  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 also when an aim is missed: the table says so."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.completion", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/performance.md")
    args = parser.parse_args(argv)
    text = f"`python -m tests.bench.completion --write`. {host()}.\n\n{table(measure())}"
    print(text)
    if args.write:
        write("bench completion", "Completion", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
