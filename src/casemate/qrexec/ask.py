"""Asks a person about a call: through a connected prompter, which shows one question at a time, or a program.

A prompter connects to ``RUN/prompt.sock``; both sides write lines of JSON. It gets ``{"ask": QUESTION, "id": N,
"seconds": S}`` and answers ``{"id": N, "answer": "allow:TARGET"}`` or ``{"id": N, "answer": "deny"}``; it gets
``{"withdrawn": N}`` when an answer is not wanted any more, and ``{"notify": {...}}`` for the user to see. Where none
is connected the program ``STATE/prompter`` is run: the question on its standard input, the answer on its output.
Every failure means no: no prompter, one that goes away, one that breaks the protocol, no answer in time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from casemate.host.process import Runner
from casemate.qrexec.decide import Question
from casemate.qrexec.evaluate import NOT_CHOSEN
from casemate.qrexec.local import listen
from casemate.qrexec.rate import Rate
from casemate.wire.errors import CallRefusedError, CasemateError, ProtocolError, printable
from casemate.wire.link import parse_object

log = logging.getLogger(__name__)

ASK_SECONDS = 90.0
"""Limit of calls (seconds): time for the user's answer, with the time in the queue."""
PENDING_OF_ONE = 4
"""Limit of calls: waiting questions to the user about one qube's calls."""
MAX_PROMPTERS = 16
"""Connected prompters. A desktop session has one; each costs a descriptor."""
MAX_LINE = 4096
"""Bytes of a line that a prompter writes."""
MAX_BACKLOG = 1 << 20
"""Bytes that wait for a prompter to read them. One that has more is disconnected."""
NOTES_PER_SECOND, NOTES_AT_ONCE = 0.5, 5.0
"""Notices about one qube's calls: per second, and at once. More could not be read."""


_DISPLAY = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""Variables of the environment that a program needs to show a window."""


def _no(why: str) -> CallRefusedError:
    return CallRefusedError(why, NOT_CHOSEN)


@dataclass(eq=False)
class _Pending:
    id: int
    question: Question
    answer: asyncio.Future[str]
    until: float


class _Prompter:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.shows: _Pending | None = None

    def send(self, body: dict[str, object]) -> None:
        if self._writer.transport.get_write_buffer_size() > MAX_BACKLOG:
            self._writer.transport.abort()  # it does not read
        else:
            self._writer.write(json.dumps(body).encode() + b"\n")


class Prompters:
    """Everybody who can ask the user. Owns the open questions and the queue of those that no prompter shows yet."""

    def __init__(self, program: Path, runner: Runner, seconds: float = ASK_SECONDS) -> None:
        self._program = program
        self._runner = runner
        self._seconds = seconds
        self._ids = itertools.count(1)
        self._prompters: list[_Prompter] = []
        self._queue: deque[_Pending] = deque()
        self._open: list[_Pending] = []
        self._one_program = asyncio.Lock()
        self._notes = Rate(NOTES_PER_SECOND, NOTES_AT_ONCE)
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        """Let prompters connect."""
        self._server = await listen(path, self._serve, MAX_LINE)

    async def close(self) -> None:
        """Take no more questions, and answer the open ones with no."""
        if self._server is not None:
            self._server.close()
        for pending in list(self._open):
            self._deny(pending, "the daemon stops")

    async def ask(self, question: Question) -> str:
        """The target that a person chose. CallRefusedError for no, for no answer, for too many questions at once."""
        same = [one.question for one in self._open if one.question.source == question.source]
        if len(same) >= PENDING_OF_ONE or any((q.service, q.argument, q.targets) ==
                                              (question.service, question.argument, question.targets)
                                              for q in same):  # fmt: skip
            raise CallRefusedError(f"{question.source} has questions of this kind open already", "busy")
        loop = asyncio.get_running_loop()
        pending = _Pending(next(self._ids), question, loop.create_future(), loop.time() + self._seconds)
        self._open.append(pending)
        try:
            async with asyncio.timeout_at(pending.until):
                if not self._prompters:
                    return await self._run_program(question)
                self._queue.append(pending)
                self._next()
                return await pending.answer
        except TimeoutError:
            raise _no(f"nobody answered within {self._seconds:g} seconds") from None
        finally:
            self._open.remove(pending)
            self._withdraw(pending)

    def notify(self, resolution: str, source: str, service: str, argument: str, target: str) -> None:
        """Show the user what became of a call: ``allow``, ``deny``, ``fail``. Notices above the rate are counted."""
        if not self._notes.allows(source):
            return
        body: dict[str, object] = {
            "resolution": resolution, "source": source, "service": service, "argument": f"+{argument}",
            "target": target, "suppressed": self._notes.held_back(source),
        }  # fmt: skip
        log.info("notice: %s %s+%s of %s to %s", resolution, service, argument, source, target)
        for prompter in self._prompters:
            prompter.send({"notify": body})

    # -- prompters that are connected

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._prompters) >= MAX_PROMPTERS:
            return
        prompter = _Prompter(writer)
        self._prompters.append(prompter)
        try:
            self._next()
            while line := await reader.readline():
                self._answered(prompter, line)
        except ProtocolError as error:
            log.warning("prompter: %s", error)
        finally:
            self._prompters.remove(prompter)
            if prompter.shows is not None:
                self._deny(prompter.shows, "the prompter went away")
            if not self._prompters:
                for pending in list(self._queue):
                    self._deny(pending, "the last prompter went away")

    def _answered(self, prompter: _Prompter, line: bytes) -> None:
        body = parse_object(line, "answer")
        number, answer = body.get("id"), body.get("answer")
        if not isinstance(number, int) or not isinstance(answer, str) or not line.endswith(b"\n"):
            raise ProtocolError("not an answer")
        pending = prompter.shows
        if pending is None or pending.id != number:
            return  # the question was withdrawn while the answer was under way
        prompter.shows = None
        if not pending.answer.done():
            try:
                pending.answer.set_result(_chosen(answer))
            except CasemateError as error:
                pending.answer.set_exception(error)
        self._next()

    def _next(self) -> None:
        for prompter in self._prompters:
            while prompter.shows is None and self._queue:
                pending = self._queue.popleft()
                if pending.answer.done():
                    continue
                prompter.shows = pending
                left = pending.until - asyncio.get_running_loop().time()
                prompter.send({"ask": pending.question.to_json(), "id": pending.id, "seconds": round(left, 1)})

    def _deny(self, pending: _Pending, why: str) -> None:
        if not pending.answer.done():
            pending.answer.set_exception(_no(why))

    def _withdraw(self, pending: _Pending) -> None:
        """Nobody waits for the answer any more."""
        pending.answer.cancel()
        if pending in self._queue:
            self._queue.remove(pending)
        for prompter in self._prompters:
            if prompter.shows is pending:
                prompter.shows = None
                prompter.send({"withdrawn": pending.id})
        self._next()

    # -- a program for each question

    async def _run_program(self, question: Question) -> str:
        try:
            status = self._program.stat()
        except OSError:
            raise _no("there is nobody to ask: no prompter runs (casemate prompt)") from None
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022 or not os.access(self._program, os.X_OK):
            raise _no(f"{self._program} is not a program that only its owner may change")
        async with self._one_program:
            data = json.dumps(question.to_json()).encode()
            try:
                done = await self._runner.run(
                    [self._program], input=data, timeout=self._seconds,
                    env={key: os.environ[key] for key in _DISPLAY if key in os.environ},
                )  # fmt: skip
            except CasemateError as error:
                raise _no(f"{self._program.name}: {error}") from None
        return _chosen(done.stdout.decode("utf-8", "replace").removesuffix("\n"))


def _chosen(answer: str) -> str:
    word, colon, target = answer.partition(":")
    if word == "allow" and colon and target:
        return target
    raise _no("the user said no" if answer == "deny" else f"the answer is not understood: {printable(answer, 40)!r}")
