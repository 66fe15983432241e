"""Verifying and restoring from the page: by the tool, in a process of its own, which gets the passphrase by itself.

The page runs ``casemate backup verify`` or ``restore`` with a profile that has a passphrase, or a qube that gives one.
So no passphrase comes from a browser or goes to one, and the verdicts are those that the tool prints.

A run ends with this process: an interrupted restore removes what it has made. Where this process is killed, the tool
notices at its next line of progress; if even that is not to be, the next restore removes what was left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from casemate.client.transport import python_path
from casemate.settings import Settings
from casemate.web.guard import Refused
from casemate.web.live import Live
from casemate.web.long_calls import TOPIC
from casemate.wire.errors import InUseError, printable

MAX_RUNS = 4
"""Limit of the manager page (backups): verified or restored at once."""
STALL_SECONDS = 1800.0
"""Limit of the manager page (seconds): in which a tool must say how far it is. A passphrase may have to be typed in a
qube, and a restore waits for the disk."""
END_SECONDS = 60.0
"""Seconds from an interrupt until the tool is killed: it removes what a restore has made."""
MAX_REPORT = 4 << 20
"""Limit of the manager page (bytes): a tool's report. An entry of a qube is about a hundred."""
KEPT_REPORTS = 20
"""Limit of the manager page (reports): of backups; older ones are forgotten."""
_MAX_LINE = 65536
_LAST_WORDS = 2000
"""Characters of what a tool said that are shown where it ended without a report."""
_PROGRESS = re.compile(rb"progress ([0-9]{1,3}\.[0-9])\n")
_PROGRAM = (
    # A process that a shell has started in the background ignores interrupts, and so would its children.
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from casemate.cli.entry import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(slots=True)
class ToolRun:
    """One run. Times are seconds since the epoch."""

    verb: str
    """``verify`` or ``restore``"""
    profile: str
    started: float
    percent: float = 0.0
    ended: float | None = None
    why: str = ""
    """Why there is no report."""
    report: dict[str, Any] = field(default_factory=lambda: {"qubes": [], "left_out": {}, "notes": [], "error": ""})
    """As ``casemate backup verify --json`` has it."""

    @property
    def whole(self) -> bool:
        """Whether all that was asked for is there, to its last byte."""
        return not self.why and bool(self.report.get("whole"))


class BackupTools:
    """What is under way, and the last reports, by profile and verb."""

    def __init__(self, settings: Settings, live: Live) -> None:
        self._settings = settings
        self._live = live
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.runs: dict[tuple[str, str], ToolRun] = {}

    def begin(self, verb: str, profile: str, words: Sequence[str] = ()) -> None:
        """Start the tool; returns at once. One run of each profile at a time."""
        if profile in self._tasks:
            raise InUseError(f"A backup by {profile} is being verified or restored already")
        if len(self._tasks) >= MAX_RUNS:
            raise Refused(503, f"{MAX_RUNS} backups are being verified or restored; wait for one of them")
        run = ToolRun(verb, profile, time.time())
        self.runs.pop((profile, verb), None)
        self.runs[profile, verb] = run
        while len(self.runs) > KEPT_REPORTS:
            old = next(key for key, one in self.runs.items() if one.ended is not None)
            del self.runs[old]
        task = asyncio.create_task(self._follow(run, words))
        self._tasks[profile] = task
        task.add_done_callback(lambda _task: self._tasks.pop(profile, None))
        self._live.tell(TOPIC)

    def cancel(self, profile: str) -> bool:
        """Interrupt the run of a profile; False where there is none."""
        task = self._tasks.get(profile)
        if task is not None and not task.cancelling():  # a second one would cut short how it ends
            task.cancel()
        return task is not None

    async def _follow(self, run: ToolRun, words: Sequence[str]) -> None:
        try:
            await self._run(run, words)
        except asyncio.CancelledError:
            run.why = "It was cancelled; what a restore had made is removed."
        except OSError as error:
            run.why = f"The tool cannot be started: {error.strerror}"
        finally:
            run.ended = time.time()
            self._live.tell(TOPIC)

    async def _run(self, run: ToolRun, words: Sequence[str]) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _PROGRAM, "casemate", "backup", run.verb, "--profile", run.profile, "--json",
            "--progress", *words,
            env=_environment(self._settings), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe,
            limit=_MAX_LINE, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None and process.stderr is not None
            async with asyncio.TaskGroup() as group:
                said = group.create_task(self._listen(run, process.stderr))
                report = group.create_task(_all_of(process.stdout))
            await process.wait()
        except* (TimeoutError, ValueError):
            run.why = f"It said nothing for {STALL_SECONDS:g} s, or too much, and was ended"
        finally:
            await _end(process)
        if run.why:
            return
        try:
            run.report |= json.loads(report.result())
        except ValueError:
            run.why = said.result() or f"The tool ended with status {process.returncode}"

    async def _listen(self, run: ToolRun, stream: asyncio.StreamReader) -> str:
        """Take the progress; what else was said last."""
        said = ""
        while True:
            async with asyncio.timeout(STALL_SECONDS):
                line = await stream.readline()
            if not line:
                return printable(said.strip().removeprefix("casemate: error: "), _LAST_WORDS)
            if found := _PROGRESS.fullmatch(line):
                run.percent = float(found[1])
                self._live.tell(TOPIC)
            else:
                said = (said + line.decode("utf-8", "replace"))[-_LAST_WORDS:]


def _environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, **settings.environment(), "PYTHONPATH": python_path()}


async def _all_of(stream: asyncio.StreamReader) -> bytes:
    found = bytearray()
    while data := await stream.read(_MAX_LINE):
        found += data
        if len(found) > MAX_REPORT:
            raise ValueError("the report is too long")
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    """See it gone: interrupted, and killed where it does not end by that."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    drained = asyncio.gather(*(_drained(stream) for stream in (process.stdout, process.stderr)))
    try:
        async with asyncio.timeout(END_SECONDS):
            await asyncio.shield(asyncio.gather(process.wait(), drained))
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _drained(stream: asyncio.StreamReader | None) -> None:
    """A tool that still has something to say must not wait for a reader."""
    while stream is not None and await stream.read(_MAX_LINE):
        pass
