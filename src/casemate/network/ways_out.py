"""All uplinks: each net qube's by what its feature ``net.uplink`` says, by a program of this host or by a card."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container

from casemate.host.process import Runner
from casemate.host.room.namespaces import Room
from casemate.model.domain import Domain
from casemate.model.uplinks import PASTA, static_of
from casemate.network.card_uplink import CardUplinks
from casemate.network.plan import uplink_tap, wanted_uplink
from casemate.network.uplink import Uplinks
from casemate.settings import Settings


class WaysOut:
    """Made by the daemon, once. Uplinks outlive it."""

    def __init__(self, settings: Settings, runner: Runner, user: int | None) -> None:
        """``user`` runs pasta where we are root; None: we are not, and can give no card away."""
        self.pastas = Uplinks(settings, runner, user)
        self.cards = CardUplinks(settings, runner, user is not None)

    def listen(self, ended: Callable[[str], None], changed: Callable[[], None]) -> None:
        """``ended`` hears of the end of a pasta, ``changed`` that a card may have come or gone."""
        self.pastas.on_end, self.cards.on_change = ended, changed

    async def adopt(self, name: str, room: Room | None) -> None:
        """Take over what an earlier daemon gave to a qube that runs."""
        self.pastas.adopt(name)
        if room is not None:
            await self.cards.adopt(name, room)

    def has(self, name: str) -> bool:
        """Whether the qube has its uplink."""
        return name in self.pastas.running() or name in self.cards.running()

    async def start(self, domain: Domain, mac: str, room: Room, names: Callable[[], Awaitable[Container[str]]]) -> None:
        """Give a qube the uplink that it is to have: it is in the room, down, when this returns; CasemateError.

        ``names`` are the interfaces that are in the room.
        """
        uplink, tap = wanted_uplink(domain), uplink_tap(domain.qid)
        assert uplink is not None
        if uplink.kind != PASTA:
            static_of(domain.features)  # what does not fit together is refused before a card is touched
            await self.cards.start(domain.name, uplink, tap, mac, room)
            return

        async def there() -> bool:
            return tap in await names()

        await self.pastas.start(domain.name, domain.qid, domain.ip or "", domain.ip6, room, there)

    async def stop(self, name: str) -> None:
        """Take the uplink of a qube away. Absent is fine."""
        await self.pastas.stop(name)
        await self.cards.stop(name)

    def release(self) -> None:
        """Stop watching; they go on."""
        self.pastas.release()
        self.cards.release()
