"""The open calls of all qubes: counted, logged when refused, and reported live to whoever watches.

A watcher connects to ``RUN/trace.sock`` and gets a line of JSON for each step of each call. While there are watchers
``RUN/reports.sock`` takes the same lines, as datagrams, from tools of this host about calls that they make themselves.
It exists only while somebody watches, so that tools do not report for nobody.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from casemate.qrexec.local import listen
from casemate.qrexec.rate import Rate
from casemate.wire.errors import CallRefusedError, ProtocolError, printable
from casemate.wire.link import parse_object

log = logging.getLogger(__name__)

OPEN_OF_ONE = 128
"""Limit of calls: open calls of one qube."""
OPEN_OF_ALL = 1024
"""Limit of calls: open calls of all qubes."""
MAX_REPORT = 2048
"""Bytes of a tool's report."""
MAX_BACKLOG = 1 << 20
"""Bytes that wait for a watcher to read them. One that has more is disconnected."""
LINES_PER_SECOND, LINES_AT_ONCE = 0.1, 50.0
"""Refusals of one qube that are logged: per second in the long run, and at once. The others are counted in the next
line. The daemon's log keeps 3 MiB; at this rate one qube needs days to push out what was written about others."""
_FAILED = {125: "cannot be run", 127: "no such service"}
"""Exit statuses by which a target's agent says that it could not run the service."""
_KEYS = frozenset({"id", "phase", "at", "source", "service", "argument", "target", "why", "cause", "status", "final"})


@dataclass(eq=False)
class Call:
    """One call of a qube, from its request to its end."""

    id: int
    source: str
    service: str
    argument: str
    target: str
    final: str = ""
    """The qube that serves it, once that is known; empty for this host."""
    begun: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"call {self.id}: {self.service}+{self.argument} of {self.source} to {self.target}"


class Calls:
    """Owns the numbers of open calls and the list of watchers."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._open: dict[str, int] = {}
        self._total = 0
        self._lines = Rate(LINES_PER_SECOND, LINES_AT_ONCE)
        self._watchers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._reports: socket.socket | None = None
        self._path: Path | None = None

    def begin(self, source: str, service: str, argument: str, target: str) -> Call:
        """A call has been asked for; CallRefusedError when there are too many, which is logged here."""
        mine = self._open.get(source, 0)
        if mine >= OPEN_OF_ONE or self._total >= OPEN_OF_ALL:
            self.not_begun(
                source, service, argument, target, "busy", f"{mine} of its calls are open, {self._total} of all"
            )
            raise CallRefusedError("too many calls", "busy")
        call = Call(next(self._ids), source, service, argument, target)
        self._open[source] = self._open.get(source, 0) + 1
        self._total += 1
        if self._watchers:
            self._tell(call, "asked")
        return call

    def not_begun(self, source: str, service: str, argument: str, target: str, cause: str, why: str) -> None:
        """A call was refused before anything was done for it."""
        self.refused(Call(next(self._ids), source, service, argument, target), cause, why)

    def step(self, call: Call, phase: str, **facts: str | int | None) -> None:
        """Something has happened to a call: ``asking``, ``decided``, ``started``, ``connected``."""
        if self._watchers:
            self._tell(call, phase, **facts)

    def refused(self, call: Call, cause: str, why: str) -> None:
        """The call does not happen. The caller learns only that."""
        if self._lines.allows(call.source):
            held = self._lines.held_back(call.source)
            more = f" ({held} more refusals were not logged)" if held else ""
            log.info("%s refused (%s): %s%s", call, cause, printable(why), more)
        if self._watchers:
            self._tell(call, "refused", cause=cause, why=printable(why))

    def silent(self, call: Call, why: str) -> None:
        """The target of a call that goes on gives no sign of life. The caller is not told."""
        if self._lines.allows(call.source):
            log.info("%s: %s", call, printable(why))
        self.step(call, "silent", why=printable(why))

    def ended(self, call: Call, status: int | None = None) -> None:
        """A call that was begun is over, however it went; ``status`` is its exit status where that is known."""
        left = self._open[call.source] - 1
        if left:
            self._open[call.source] = left
        else:
            del self._open[call.source]
        self._total -= 1
        if status in _FAILED and self._lines.allows(call.source):
            log.info("%s ended with status %d (%s)", call, status, _FAILED[status])
        if self._watchers:
            self._tell(call, "ended", status=status)

    # -- watchers

    async def start(self, path: Path) -> None:
        """Let watchers connect at ``path``; reports of tools come to ``reports.sock`` beside it."""
        self._path = path.with_name("reports.sock")
        self._path.unlink(missing_ok=True)
        self._server = await listen(path, self._serve, 4096)

    async def close(self) -> None:
        """Send the watchers away."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._watchers):
            writer.close()
        self._stop_reports()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._watchers.add(writer)
        try:
            self._take_reports()
            writer.write(b'{"phase": "watching"}\n')
            await reader.read()
        finally:
            self._watchers.discard(writer)
            if not self._watchers:
                self._stop_reports()

    def _tell(self, call: Call, phase: str, **facts: str | int | None) -> None:
        body = {
            "id": str(call.id), "phase": phase, "at": round(time.monotonic() - call.begun, 6), "source": call.source,
            "service": call.service, "argument": call.argument, "target": call.target,
        }  # fmt: skip
        self._send(body | facts)

    def _send(self, body: dict[str, object]) -> None:
        line = json.dumps(body).encode() + b"\n"
        for writer in list(self._watchers):
            if writer.transport.get_write_buffer_size() > MAX_BACKLOG:
                writer.transport.abort()  # it does not read
            else:
                writer.write(line)

    def _take_reports(self) -> None:
        if self._reports is not None or self._path is None:
            return
        self._path.unlink(missing_ok=True)
        reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        old = os.umask(0o177)
        try:
            reports.bind(str(self._path))
        except OSError:
            reports.close()
            raise
        finally:
            os.umask(old)
        self._reports = reports
        asyncio.get_running_loop().add_reader(reports, self._report, reports)

    def _stop_reports(self) -> None:
        if self._reports is not None and self._path is not None:
            asyncio.get_running_loop().remove_reader(self._reports)
            self._path.unlink(missing_ok=True)
            self._reports.close()
            self._reports = None

    def _report(self, reports: socket.socket) -> None:
        try:
            body = parse_object(reports.recv(MAX_REPORT), "report of a tool")
        except (BlockingIOError, ProtocolError):
            return
        if body.keys() <= _KEYS and all(isinstance(value, str | int | float | None) for value in body.values()):
            self._send(body)
