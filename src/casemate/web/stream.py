"""What changes, as server-sent events for one browser: fragments of rows, figures of loads, messages.

Each message is one JSON object. Its id is ``EPOCH-VERSION``; a browser that comes back with the id goes on from there,
unless another process or a later one answers.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from casemate.web import rendering
from casemate.web.guard import Refused
from casemate.web.live import TICK_SECONDS, Changes, Live
from casemate.web.loads import POINTS, Load

MAX_STREAMS = 16
"""Limit of the manager page (streams): pages that are kept up to date at once."""
HEARTBEAT_SECONDS = 15.0
"""A line at least so often, so that both ends notice when the other has gone."""
WIDTH, HEIGHT = 80, 20
"""Of the picture of a load, in its own units."""
LEAST_TOP = 10_000
"""Bytes a second that a line of traffic shows as full at least: a few packets are no mountain."""


def points(values: Sequence[int], top: int) -> str:
    """The line of a load, newest at the right, as the ``points`` of an SVG polyline. ``top`` is as high as it goes."""
    step = WIDTH / POINTS
    start = WIDTH - step * len(values)
    return " ".join(
        f"{start + step * (i + 1):.0f},{HEIGHT - 1 - min(v, top) * (HEIGHT - 2) / top:.1f}"
        for i, v in enumerate(values)
    )


def shown(load: Load) -> dict[str, tuple[str, str]]:
    """A load as the table shows it: the newest value in words and the line, by column."""
    return {
        "memory": (f"{load.memory[-1]} MiB", points(load.memory, max(1, *load.memory) * 5 // 4 + 1)),
        "cpu": (f"{load.cpu[-1]} %", points(load.cpu, 100)),
        "traffic": (f"{rendering.mib(load.network[-1])}/s", points(load.network, max(LEAST_TOP, *load.network))),
    }


class Streams:
    """All streams of this process. ``sources`` has, by topic, what must be followed while a stream wants to know of it;
    other topics need nothing."""

    def __init__(
        self, live: Live, read_only: bool, sources: Mapping[str, Callable[[], AbstractContextManager[None]]]
    ) -> None:
        self._live = live
        self._sources = sources
        self._read_only = read_only
        self._open = 0
        self._epoch = secrets.token_hex(8)

    def open(self, last_id: str, topics: frozenset[str] = frozenset()) -> AsyncIterator[bytes]:
        """A stream that goes on after ``last_id``, and tells of ``topics`` too; Refused where there are MAX_STREAMS."""
        if self._open >= MAX_STREAMS:
            raise Refused(503, f"{MAX_STREAMS} pages are open; close one")
        epoch, _, version = last_id.partition("-")
        known = epoch == self._epoch and version.isascii() and version.isdecimal() and len(version) < 19
        return self._messages(int(version) if known else 0, topics)

    async def _messages(self, version: int, topics: frozenset[str]) -> AsyncIterator[bytes]:
        if self._open >= MAX_STREAMS:  # many may have been let in before the first of them began to read
            return
        self._open += 1
        try:
            with ExitStack() as used:
                used.enter_context(self._live.used())
                for topic in topics & self._sources.keys():
                    used.enter_context(self._sources[topic]())
                sent = 0.0
                while True:
                    changes = self._live.since(version)
                    now = time.monotonic()
                    if not sent or (changes.version > version and changes.concerns(topics)):
                        yield self._frame(changes, topics)
                        sent = now
                    elif now - sent >= HEARTBEAT_SECONDS:
                        yield b":\n\n"
                        sent = now
                    version = changes.version
                    await self._live.newer(version, sent + HEARTBEAT_SECONDS - time.monotonic())
                    # Whatever comes within a tick goes into one message: at most ten a second reach the browser. What
                    # comes after a quiet tick goes at once, and so do the first rows: somebody waits for them.
                    if not changes.lost:
                        await asyncio.sleep(now + TICK_SECONDS - time.monotonic())
        finally:
            self._open -= 1

    def _frame(self, changes: Changes, topics: frozenset[str]) -> bytes:
        message = {
            "whole": changes.whole,
            "rows": {row.name: rendering.row(row, self._read_only) for row in changes.rows},
            "gone": changes.gone,
            "loads": {name: shown(load) for name, load in changes.loads.items() if load.cpu},
            "notices": changes.notices,
            "lost": changes.lost,
            "topics": [topic for topic in changes.topics if topic in topics],
        }
        # JSON in ASCII has no line feed, so it is one line of "data".
        return f"id: {self._epoch}-{changes.version}\ndata: {json.dumps(message)}\n\n".encode()
