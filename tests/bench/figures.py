"""Figures: percentiles, rows of the table, the page they are written to."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "performance.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``limit`` is what was measured beside it in the same run; ``aim`` what we want."""

    what: str
    measured: str
    limit: str = ""
    ratio: str = ""
    aim: str = ""
    met: bool | None = None
    how: str = ""


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def percentile(values: Sequence[float], part: int) -> float:
    """The smallest value that so many per cent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * part // 100) - 1)]


def seconds(value: float) -> str:
    """A time as a person writes it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def host(kind: str = "") -> str:
    """What this host is and how busy it is; ``kind`` is how it runs guests, where there are any."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)
    load = os.getloadavg()
    guests = f", guests run by {kind}" if kind else ""
    return (
        f"Host: {os.cpu_count()} processors ({model[1] if model else 'unknown'}), "
        f"{int(memory[1]) >> 20 if memory else 0} GiB, Linux {os.uname().release}{guests}. "
        f"Load average {load[0]:.1f} (1 min), {load[1]:.1f} (5 min)"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, then how each was measured."""
    lines = ["| | What | Measured | Limit in the same run | Ratio | Aim | |", "|---|---|---|---|---|---|---|"]
    for number, row in enumerate(rows, 1):
        met = "" if row.met is None else "met" if row.met else "**not met**"
        cells = (str(number), row.what, row.measured, row.limit, row.ratio, row.aim, met)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", "How each row was measured:", "", *_notes(rows)])


def _notes(rows: Sequence[Row]) -> list[str]:
    """How each row was measured, said once for rows that follow each other."""
    notes: list[tuple[int, int, str]] = []
    for number, row in enumerate(rows, 1):
        if notes and notes[-1][2] == row.how:
            notes[-1] = (notes[-1][0], number, row.how)
        else:
            notes.append((number, number, row.how))
    return [f"* {first if first == last else f'{first} to {last}'}: {how}" for first, last, how in notes]


def write(name: str, title: str, text: str) -> None:
    """Put text between the marks ``name`` of the page; the first time they come at its end, under a title."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = PAGE.read_text()
    if begin not in page:
        page = page.rstrip("\n") + f"\n\n## {title}\n\n{begin}\n{end}\n"
    before, _, rest = page.partition(begin)
    text = text.rstrip("\n")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
