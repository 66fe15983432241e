"""What the engine asks of a wire room, and the room of a host that has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from casemate.host.room.links import Tap, Traffic
from casemate.host.room.namespaces import NoRoomError, Room
from casemate.host.room.nft import Command


class Wires(Protocol):
    """Taps and rules of the wire room."""

    @property
    def why(self) -> str:
        """Why there are none on this host; empty where there are."""

    @property
    def room(self) -> Room | None:
        """The room's namespaces."""

    async def apply(
        self, taps: Sequence[Tap], commands: Sequence[Command], up: Sequence[str], remove: Sequence[str]
    ) -> None:
        """Make taps, load rules, let frames pass on ``up``, remove taps; if it fails, nothing has changed."""

    async def names(self) -> dict[str, int]:
        """Interfaces that are there, with their indexes."""

    async def traffic(self) -> Mapping[str, Traffic]:
        """Counters of the interfaces."""

    async def counters(self) -> Mapping[str, tuple[int, int]]:
        """Packets and bytes by counter of the rules."""


class NoWires:
    """Where qubes can have none: whoever needs one is told why."""

    room = None

    def __init__(self, why: str) -> None:
        self.why = why

    async def apply(
        self, taps: Sequence[Tap], commands: Sequence[Command], up: Sequence[str], remove: Sequence[str]
    ) -> None:
        if taps:
            raise NoRoomError(f"qubes have no network on this host: {self.why}")

    async def names(self) -> dict[str, int]:
        return {}

    async def traffic(self) -> Mapping[str, Traffic]:
        return {}

    async def counters(self) -> Mapping[str, tuple[int, int]]:
        return {}
