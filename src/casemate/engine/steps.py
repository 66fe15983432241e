"""A start as a list of steps, each with its way back, taken in order and undone in reverse."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from casemate.engine.warm_image import WarmImage
from casemate.host.hypervisor import Disk
from casemate.model.domain import Domain
from casemate.wire.api_event import ApiEvent


@dataclass
class Start:
    """One attempt to start a qube: what its steps share."""

    domain: Domain
    say: Callable[[ApiEvent], None]
    """Announces an event of the qube: (event, **details)."""
    guid: str = ""
    """The id of this start, in its events."""
    image: WarmImage | None = None
    """What the machine goes on from; None for one that boots."""
    memory_is_file: bool = False
    """Whether a machine that boots has a file as its memory, so that it can be forked."""
    later: list[Callable[[], None]] = field(default_factory=list)
    """Called when the start is complete, to announce what clients must not hear before."""
    disks: dict[str, Disk] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each step took, for the log."""


class Step(Protocol):
    """One thing that a running qube has and a halted one has not.

    ``down`` is idempotent, needs nothing that ``up`` left in memory (it works after a crash of the daemon) and does
    not fail because the thing is not there.
    """

    async def up(self, start: Start) -> None:
        """Make it so."""

    async def down(self, domain: Domain) -> None:
        """Take it away again."""


async def take_up(steps: Sequence[Step], start: Start) -> None:
    """Take every step; if one fails, it and those before come down again in reverse, and the error goes on."""
    async with AsyncExitStack() as undo:
        for step in steps:
            undo.push_async_callback(step.down, start.domain)
            begin = time.monotonic()
            await step.up(start)
            start.seconds[type(step).__name__.removesuffix("Step").lower()] = time.monotonic() - begin
        undo.pop_all()


async def take_down(steps: Sequence[Step], domain: Domain) -> None:
    """Take every step back in reverse; one that fails does not keep the others from it. The first error goes on."""
    async with AsyncExitStack() as undo:
        for step in steps:
            undo.push_async_callback(step.down, domain)
