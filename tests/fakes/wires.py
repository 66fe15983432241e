"""A wire room without a kernel: remembers taps and takes every rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from casemate.host.room.links import Tap, Traffic
from casemate.host.room.nft import Command


class FakeWires:
    """Taps by name; ``commands`` are those of all transactions, in order."""

    why = ""
    room = None

    def __init__(self) -> None:
        self.taps: dict[str, int] = {}
        self.commands: list[Command] = []

    async def apply(
        self, taps: Sequence[Tap], commands: Sequence[Command], up: Sequence[str], remove: Sequence[str]
    ) -> None:
        self.taps.update({tap.name: len(self.taps) + 2 for tap in taps})
        assert set(up) <= self.taps.keys()
        self.commands.extend(commands)
        for name in remove:
            self.taps.pop(name, None)

    async def names(self) -> dict[str, int]:
        return dict(self.taps)

    async def traffic(self) -> Mapping[str, Traffic]:
        return {}

    async def counters(self) -> Mapping[str, tuple[int, int]]:
        return {}
