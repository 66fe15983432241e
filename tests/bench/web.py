"""``python -m tests.bench.web``: the manager page: first paint, event to row, memory, processor when nothing happens.

The page's real server in a process of its own, and in another the Admin API over a store without machines. With
``--write`` the table goes to docs/reference/performance.md, section "Manager page".
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.web.live import SHOWN
from tests.bench.api import _daemon, populate, program
from tests.bench.figures import Row, host, middle, percentile, seconds, table, write
from tests.builders import settings_in, short_directory
from tests.fakes.web import Page, page

COUNTS = {10: 0.15, 100: 0.2, 1000: 0.5}
"""Numbers of qubes, and how long (seconds) a first paint may take."""
PAINTS = 9
CHANGES = 150
EVENT_AIM = 0.15
MEMORY_AIM = 45.0
"""MiB"""
IDLE_SECONDS = 30.0
VIEWS = ("/view/qubes", "/view/host", "/part/host", "/part/events", "/view/network", "/part/network", "/view/policy",
         "/part/calls", "/view/templates", "/part/templates", "/view/disposables", "/part/disposables", "/view/backups",
         "/part/backups", "/part/first")  # fmt: skip
MODULES = ("casemate", "forms", "messages", "pages", "parts", "refresh", "requests", "selection", "stream", "table")
ASSETS = (
    "/", "/static/casemate.css", "/static/qube.css", *(f"/static/{name}.js" for name in MODULES), "/static/icon.svg",
    "/view/qubes",
)  # fmt: skip


@contextmanager
def served(count: int) -> Iterator[tuple[Path, Qubes]]:
    """A daemon with so many qubes: its state, and a client of it."""
    with short_directory() as state:
        populate(state / "qubes.xml", count)
        with program(state / "run" / "qubesd.sock", _daemon, str(state)):
            yield state, Qubes(Transport(settings_in(state), daemon=()))


def paint(web: Page, count: int) -> float:
    """Seconds for all that a browser fetches until it has every row: frame, files, table, the first of the stream."""
    begin = time.perf_counter()
    for path in ASSETS:
        status, _, _ = web.ask("GET", path)
        assert status == 200, path
    with web.stream() as messages:
        rows: set[str] = set()
        for message in messages:
            rows |= message["rows"].keys()
            if not message["lost"] and len(rows) > count:
                break
    return time.perf_counter() - begin


def paints() -> list[Row]:
    """First paint, by the number of qubes: of a page that has just been started, and of one that somebody looks at."""
    rows = []
    for count, aim in COUNTS.items():
        with served(count) as (state, qubes):
            asked = []
            for _ in range(PAINTS):
                begin = time.perf_counter()
                qubes.inventory(SHOWN)
                asked.append(time.perf_counter() - begin)
            cold = []
            for _ in range(3):
                with page(state) as web:
                    cold.append(paint(web, count))
            with page(state) as web, web.stream() as held:
                next(message for message in held if not message["lost"])
                warm = [paint(web, count) for _ in range(PAINTS)]
        how = (
            "From the request for the frame until frame, style sheet, script, table and all rows of the stream have "
            "come over loopback; a browser's own work is not in it. Beside it the daemon's list of what rows show. "
            f"Medians: of 3 pages that were just started (nothing is known yet), of {PAINTS} windows of a page in use."
        )
        limit = middle(asked)
        for what, values in (("just started", cold), ("in use", warm)):
            took = middle(values)
            rows.append(Row(
                f"first paint, {count} qubes, page {what}", seconds(took), f"daemon's list {seconds(limit)}",
                f"{took / limit:.1f}", f"≤ {seconds(aim)}", took <= aim, how,
            ))  # fmt: skip
    return rows


def events() -> list[Row]:
    """From the request for a change until the row is in the browser's stream."""
    with served(100) as (state, qubes), page(state) as web, web.stream() as messages:
        next(message for message in messages if not message["lost"])
        took, limit = [], []
        labels = ("green", "blue", "orange", "red")  # the first is another than it has
        for number in range(CHANGES):
            label = labels[number % 4]
            begin = time.perf_counter()
            qubes.set("work-0050", "label", label)
            limit.append(time.perf_counter() - begin)
            next(m for m in messages if f"label {label}" in m["rows"].get("work-0050", ""))
            took.append(time.perf_counter() - begin)
            time.sleep(0.03 + (number * 37 % 100) / 1000)  # not in step with the page's ticks
    late = percentile(took, 95)
    return [Row(
        "event to row, p50 and p95, 100 qubes", f"{seconds(middle(took))}, {seconds(late)}",
        f"the change itself {seconds(middle(limit))}", f"{middle(took) / middle(limit):.1f}",
        f"p95 ≤ {seconds(EVENT_AIM)}", late <= EVENT_AIM,
        f"A label is set by a client, {CHANGES} times; until the stream brings the row with it. Beside it the call "
        "that sets it. The page sends at most ten messages a second, so a row may wait 0.1 s and its reading as long.",
    )]  # fmt: skip


def processor(pid: int) -> float:
    """Seconds of processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Resident memory in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def rest() -> list[Row]:
    """Memory with a thousand qubes after each page was shown; processor while nothing happens."""
    with served(1000) as (state, _), page(state) as web:
        fresh = resident(web.process.pid)
        begin = processor(web.process.pid)
        time.sleep(IDLE_SECONDS)
        alone = processor(web.process.pid) - begin
        with web.stream() as messages:
            next(message for message in messages if not message["lost"])
            for _ in range(3):
                for path in VIEWS:
                    assert web.ask("GET", path)[0] == 200, path
            used = resident(web.process.pid)
            begin = processor(web.process.pid)
            time.sleep(IDLE_SECONDS)
            watched = processor(web.process.pid) - begin
    shares = "Resident memory (/proc/PID/statm), with what it shares."
    ticks = f"utime and stime of /proc/PID/stat over {IDLE_SECONDS:g} s, in clock ticks of 10 ms."
    aim = f"≤ {MEMORY_AIM:g} MiB"
    return [
        Row("memory of casemate-web, just started", f"{fresh:.1f} MiB", "", "", aim, fresh <= MEMORY_AIM, shares),
        Row("– the same, 1,000 qubes, each page shown three times", f"{used:.1f} MiB", "", "", aim, used <= MEMORY_AIM,
            shares),
        Row("processor when idle, nobody looks", share(alone), "", "", "0", alone == 0, ticks),
        Row("– the same, one window on 1,000 halted qubes", share(watched), "", "", "0", watched <= 0.01, ticks),
    ]  # fmt: skip


def share(taken: float) -> str:
    """Seconds of processor as a part of IDLE_SECONDS."""
    return f"{taken / IDLE_SECONDS * 100:.2f} %"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.web", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table to the page of figures")
    args = parser.parse_args()
    before = host().rpartition("Load average ")[2]
    rows = []
    for measure in (paints, events, rest):
        print(f"bench: {measure.__name__}", file=sys.stderr, flush=True)
        rows += measure()
    text = f"{host()} at the end, {before} at the beginning.\n\n{table(rows)}\n"
    print(text)
    if args.write:
        write("bench web", "Manager page", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
