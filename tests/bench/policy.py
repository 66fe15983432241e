"""``python -m tests.bench.policy``: parsing and deciding with 5,000 rules, beside what bounds them in the same run.

With ``--write`` the table goes to docs/reference/performance.md, section "Policy". Upstream's figures were measured on
another, busy host: compare its ratio to its own limit with ours, not the times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from casemate.host.process import Runner
from casemate.qrexec.ask import Prompters
from casemate.qrexec.call_sockets import CallSockets
from casemate.qrexec.calls import Calls
from casemate.qrexec.decide import decide_now
from casemate.qrexec.evaluate import Allow
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.system import Systems
from casemate.store.store import Store
from tests.bench.figures import seconds, write
from tests.builders import settings_in

RULES = 5000
QUBES = 1000
REQUEST = b"source=q1\nintended_target=q2\nservice_and_arg=last+arg\n\n"


def rules(count: int, kind: str = "names") -> str:
    """So many rules; the last one fits the call that is measured, and only that one."""
    lines = []
    for number in range(count - 1):
        if kind == "names":
            service = f"service.{number % 200} +a{number}"
            lines.append(f"{service} q{number % QUBES} q{number * 7 % QUBES} allow user=u{number % 9}")
        else:  # all about the same service, by groups: nothing to be found by service and names alone
            lines.append(f"last * @tag:t{number} @anyvm ask default_target=q{number % QUBES}")
    return "\n".join([*lines, "last * @tag:caller @tag:bench allow"]) + "\n"


class Installation:
    """Policy and store in a directory, as the daemon has them."""

    def __init__(self, directory: Path) -> None:
        self.settings = settings_in(directory)
        for path in (self.settings.policy_dir, self.settings.policy_run_dir):
            path.mkdir(mode=0o700, parents=True)
        self.file = self.settings.policy_dir / "30-user.policy"
        self.store = Store(self.settings.store_file)
        with self.store.write() as transaction:
            system = transaction.system
            system.add("TemplateVM", "debian", uuid=UUID(int=1), label="black")
            for number in range(QUBES):
                qube = system.add("AppVM", f"q{number}", uuid=UUID(int=10 + number), template="debian", label="blue")
                qube.netvm = None
                qube.tags.add("bench")
            system.domains["q1"].tags.add("caller")
        self.files = PolicyFiles(self.settings.policy_dir, self.settings.policy_run_dir)
        self.info = Systems(self.store.snapshot, lambda name: "Halted")

    def decide(self) -> None:
        """One decision, from nothing kept but what the daemon keeps."""
        found = decide_now(self.files, self.info(), "q1", "last", "arg", "q2")
        assert isinstance(found, Allow) and found.target == "q2"


def each(rounds: int, repeat: int, *works: Callable[[], object]) -> list[float]:
    """The median time of one of each, taken in turn, ``repeat`` at a time."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for found, work in zip(times, works, strict=True):
            begin = time.perf_counter()
            for _ in range(repeat):
                work()
            found.append((time.perf_counter() - begin) / repeat)
    return [statistics.median(found) for found in times]


class Table:
    """What was measured, and what bounds it."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def add(
        self, what: str, mine: float, limit: float, beside: str, upstream: str, theirs: str, aim: str = "",
        met: bool | None = None,
    ) -> None:  # fmt: skip
        """One row."""
        verdict = "" if met is None else "met" if met else "**not met**"
        shown = seconds(limit) if limit >= 1e-6 else f"{limit * 1e9:.0f} ns"
        row = (what, seconds(mine), f"{beside} {shown}", f"{mine / limit:.1f}", upstream, theirs, aim, verdict)
        self.rows.append(f"| {' | '.join(row)} |")
        print(self.rows[-1], file=sys.stderr)


def parsing(table: Table, here: Installation) -> None:
    """A whole load of the policy from its file."""
    here.file.write_text(rules(RULES))

    def split() -> list[list[str]]:
        return [line.split() for line in here.file.read_text().split("\n")]

    mine, limit = each(15, 1, here.files.load, split)
    table.add(f"{RULES} rules: read and parse", mine, limit, "read and split", "458 ms / 1.1 ms", "416", "≤ 100",
              mine / limit <= 100)  # fmt: skip


def deciding(table: Table, here: Installation) -> None:
    """Decisions with few and many rules, whatever these are about."""
    table_of = {f"key{number}": number for number in range(RULES)}

    def look_up() -> int:
        return table_of["key77"]

    times: dict[tuple[str, int], float] = {}
    for kind in ("names", "groups"):
        for count in (50, RULES):
            here.file.write_text(rules(count, kind))
            here.decide()
            mine, limit = each(200, 50, here.decide, look_up)
            times[kind, count] = mine
            upstream = ("2.2–6 ms / 0.08 µs", "27,500–75,000") if count == RULES else ("", "")
            about = "of other services" if kind == "names" else "of the same service, by tags"
            table.add(f"a decision, {count} rules {about}", mine, limit, "look-up", *upstream, "≤ 20 µs", mine <= 20e-6)
        one, many = times[kind, 50], times[kind, RULES]
        table.add(f"– {RULES} rules beside 50", many, one, "50 rules", "", "", "≤ 1.3", many / one <= 1.3)


def accounts(table: Table, here: Installation) -> None:
    """What limits, log and trace cost a call while nobody watches."""
    calls = Calls()

    def account() -> None:
        call = calls.begin("q1", "last", "arg", "q2")
        calls.step(call, "decided", why="allowed", final="q2")
        calls.step(call, "started", final="q2")
        calls.step(call, "connected")
        calls.ended(call, 0)

    mine, limit = each(100, 100, account, here.decide)
    table.add(
        "accounts of a call that nobody watches", mine, limit, "its decision", "", "", "≤ 0.5", mine / limit <= 0.5
    )


@contextmanager
def serving(here: Installation) -> Iterator[None]:
    """The daemon's sockets, and an echo server beside them, on a loop in a thread."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readuntil(b"\n\n"))
        writer.close()

    async def serve() -> None:
        sockets = CallSockets(
            here.settings, here.files, here.info, Prompters(here.settings.state / "p", Runner()), Calls()
        )
        await sockets.open()
        server = await asyncio.start_unix_server(echo, here.settings.run / "echo.sock")
        ready.set()
        await stop.wait()
        server.close()
        await sockets.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def asking(table: Table, here: Installation) -> None:
    """Requests over the policy's socket; the first after a change reads everything anew."""
    here.file.write_text(rules(RULES))

    def request(name: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(here.settings.run / name))
            sock.sendall(REQUEST)
            data = b""
            while more := sock.recv(4096):
                data += more
        return data

    def changed() -> float:
        here.file.write_text(rules(RULES))
        begin = time.perf_counter()
        request("policy.sock")
        return time.perf_counter() - begin

    with serving(here):
        assert request("policy.sock").startswith(b"result=allow\n")
        mine, limit = each(300, 3, lambda: request("policy.sock"), lambda: request("echo.sock"))
        table.add("a request on policy.sock", mine, limit, "echo server", "1.3 ms", "", "≤ 1.5", mine / limit <= 1.5)
        parses, firsts = [], []
        for _ in range(15):
            firsts.append(changed())
            parses += each(1, 1, here.files.load)
        anew, parse = statistics.median(firsts), statistics.median(parses)
        table.add("– the first after a change", anew, parse, "read and parse", "382 ms / 458 ms", "0.8", "≤ 1.5",
                  anew / parse <= 1.5)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 also when an aim is missed: the table says so."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policy", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/performance.md")
    args = parser.parse_args(argv)
    directory = Path(tempfile.mkdtemp(prefix="bench-policy-"))
    table, load = Table(), os.getloadavg()[0]
    try:
        here = Installation(directory)
        parsing(table, here)
        deciding(table, here)
        accounts(table, here)
        here.files.close()
        asking(table, here)
    finally:
        shutil.rmtree(directory)
    if args.write:
        write("bench policy", "Policy", "\n".join([
            f"`python -m tests.bench.policy --write`, {os.cpu_count()} processors, load average {load:.1f} at the "
            f"beginning and {os.getloadavg()[0]:.1f} at the end; medians, both sides in turn. A decision takes in all "
            f"that the daemon does for one: has the policy changed, has the store ({QUBES} qubes), which rule. "
            "Upstream's figures are from another host, each with what it was measured beside.",
            "",
            "| What | Casemate | Beside it | Ratio | Upstream | Its ratio | Aim | |",
            "|---|---|---|---|---|---|---|---|",
            *table.rows,
        ]) + "\n")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
