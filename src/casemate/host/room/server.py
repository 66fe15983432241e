"""Answers casemated's requests in the wire room: machines, taps, rules."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from casemate.host.hypervisor import Hypervisor, MachineEvent
from casemate.host.room.links import Links, Tap, Traffic
from casemate.host.room.messages import read_message, write_message
from casemate.host.room.nft import Command, Nft
from casemate.wire.errors import CasemateError

log = logging.getLogger(__name__)

TABLE = "room"
"""The table of family netdev that has all rules for taps."""

_SILENT: list[Command] = [
    {"add": {"table": {"family": "inet", "name": TABLE}}},
    *(
        {
            "add": {
                "chain": {
                    "family": "inet", "table": TABLE, "name": hook, "type": "filter", "hook": hook, "prio": 0,
                    "policy": "drop",
                }
            }
        }
        for hook in ("input", "forward", "output")
    ),
]  # fmt: skip
"""What reaches the room's own network stack ends there: no frame should, and none is answered."""


class Wires:
    """Taps and rules. Each call is complete when it returns, or has changed nothing."""

    def __init__(self) -> None:
        self.links, self.nft = Links(), Nft()
        self.nft.load(_SILENT)

    def apply(self, taps: Sequence[Tap], commands: Sequence[Command], up: Sequence[str], remove: Sequence[str]) -> None:
        """Make taps, load rules, let frames pass, remove taps: in this order, so that no link is up without rules.

        Rules name interfaces, so the taps must be there first, down. If the rules are refused, new taps go again.
        """
        made = self.links.make(taps)
        try:
            self.nft.load(commands)
            self.links.up(up)
        except CasemateError:
            self.links.remove(made)
            raise
        self.links.remove(remove)

    def names(self) -> dict[str, int]:
        """The interfaces that are there, with their indexes."""
        return self.links.names()

    def traffic(self) -> dict[str, Traffic]:
        """Counters of all interfaces."""
        return dict(self.links.traffic())

    def counters(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes by counter of the rules."""
        return self.nft.counters(TABLE)


class Server:
    """Serves one connection until its other end closes it."""

    def __init__(self, machines: Hypervisor, wires: Wires | None, thread: ThreadPoolExecutor) -> None:
        """``thread``: the one that made the wires and does all work on them, in order. Each takes milliseconds."""
        self._parts: dict[str, Any] = {"machines": machines, "wires": wires}
        self._thread = thread
        self._tasks: set[asyncio.Task[None]] = set()
        machines.subscribe(self._event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the end of the connection."""
        self._writer = writer
        while True:
            try:
                request = await read_message(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            # Not one after the other: a start takes seconds, and other qubes must not wait for it.
            task = asyncio.create_task(self._answer(*request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, part: str, method: str, arguments: tuple[Any, ...]) -> None:
        error: CasemateError | None = None
        value: Any = None
        try:
            work = getattr(self._parts[part], method)
            if part == "machines":
                value = await work(*arguments)
            else:
                value = await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except CasemateError as failure:
            error = failure
        except Exception as failure:
            log.exception("%s.%s failed", part, method)
            error = CasemateError(f"{part}.{method}: {failure!r}")
        write_message(self._writer, (number, error and (type(error), str(error)), value))

    def _event(self, event: MachineEvent) -> None:
        write_message(self._writer, (None, None, event))
