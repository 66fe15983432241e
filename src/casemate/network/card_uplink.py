"""Uplinks by a card of this host: the net qube is a machine of the network that the card is in.

::

    nothing ── write record ──▶ recorded ── hold the room, take or share ──▶ in the room ──▶ rules, up
       ▲                                                                        │         (engine/network.py)
       └── forget record ◀── end the holder ◀── give back, or remove ◀──────────┘

The record (``host/card_records.py``) is there from before the first step until after the last, so a daemon that was
killed at any of them leaves its successor all that it needs. A card that is in the room is an interface of the room's
namespace, which ends with its last process; then software interfaces would end too. So for each moved card one process
(``sleep``) is in the room that nobody has a reason to kill. A card that vanishes is looked for again whenever
an interface comes or goes, here or in the room.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

from casemate.host import card_records, cards
from casemate.host.card_records import CardRecord
from casemate.host.cards import CardError, in_thread
from casemate.host.process import Runner
from casemate.host.room.namespaces import Room
from casemate.model.uplinks import CARD, Uplink
from casemate.network.plan import Way
from casemate.settings import Settings

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.5
"""After a change of an interface, before cards are looked for: changes come in bursts, some of them our own."""


class CardUplinks:
    """The cards that net qubes have. They outlive the daemon, as QEMU does."""

    def __init__(self, settings: Settings, runner: Runner, root: bool) -> None:
        """``root``: whether this daemon may take a card from the host."""
        self._settings = settings
        self._runner = runner
        self._root = root
        self._running: dict[str, Way] = {}
        self._events: list[socket.socket] = []
        self._timer: asyncio.TimerHandle | None = None
        self.missing: dict[str, str] = {}
        """Why a qube that runs has no card now, by qube."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a card may have come or gone."""

    def running(self) -> Mapping[str, Way]:
        """The qubes whose card is there."""
        return self._running

    # -- there

    async def adopt(self, name: str, room: Room) -> bool:
        """Take over the card that an earlier daemon gave to the qube; False when it is not in the room."""
        if name in self._running:
            return True
        record = card_records.read(self._settings.run, name)
        if record is None:
            return False
        await self._watch(room)
        if record.room != room.inode or record.interface not in await in_thread(cards.names_in, room.net):
            return False
        if record.moved:
            await self._hold(name, room)
        self._running[name] = Way(Uplink(record.kind, record.card), record.interface)
        return True

    async def start(self, name: str, uplink: Uplink, interface: str, mac: str, room: Room) -> None:
        """Give a qube its card: it is in the room, down, when this returns. ``interface`` is what one that shares the
        card is called there. CardError when it cannot be; then the card is as it was."""
        if await self.adopt(name, room):
            return
        if not self._root:
            raise CardError(f"only a daemon that is root can give {uplink.card} to {name}; net.uplink pasta needs none")
        await self._undo(name)  # an attempt that broke off, or a card that vanished
        await self._watch(room)
        self._refuse_second(name, uplink)
        moving = uplink.kind == CARD
        card = await in_thread(cards.look, uplink.card, moving)
        stands, address = (card.name, card.address) if moving else (interface, mac)
        record = CardRecord(name, uplink.kind, card.name, stands, address, room.inode, card.up)
        try:
            card_records.write(self._settings.run, record)
        except OSError as error:
            raise CardError(f"{card.name} is not taken, because that cannot be written down: {error}") from None
        try:
            if moving:
                await self._hold(name, room)
                await in_thread(cards.take, card, room.net, mac)
            else:
                await in_thread(cards.share, card, room.net, interface, mac)
        except BaseException:
            await self._undo(name)
            raise
        self._running[name] = Way(uplink, record.interface)
        self.missing.pop(name, None)

    def _refuse_second(self, name: str, uplink: Uplink) -> None:
        for other in card_records.read_all(self._settings.run):
            if other.qube != name and other.card == uplink.card and (other.moved or uplink.kind == CARD):
                raise CardError(f"{uplink.card} is in use: {other.qube} has it")

    async def _hold(self, name: str, room: Room) -> None:
        """Have a process in the room that ends with the qube's uplink."""
        run = self._settings.run
        for pidfd in (found := await in_thread(card_records.holders, run, name)):
            os.close(pidfd)
        if not found:
            # It has the room as its standard input too, so it holds it before it is in there.
            argv = ["nsenter", "--net=/proc/self/fd/0", "sleep", "infinity"]
            mark = {card_records.HOLDER: str(card_records.path_of(run, name))}
            await self._runner.spawn(argv, stdin=room.net, env=mark)

    # -- is it still there?

    async def _watch(self, room: Room) -> None:
        if self._events:
            return
        for net in (None, room.net):
            events = await in_thread(cards.link_events, net)
            self._events.append(events)
            asyncio.get_running_loop().add_reader(events, self._heard, events)

    def _heard(self, events: socket.socket) -> None:
        try:
            while events.recv(65536):
                pass
        except OSError:
            pass  # nothing more, or more than the socket holds, which is a change as well
        self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self.on_change()

    async def look(self, room: Room) -> frozenset[str]:
        """Notice cards that have vanished; the qubes that lost theirs since the last look."""
        if not self._running:
            return frozenset()
        there = await in_thread(cards.names_in, room.net)
        gone = frozenset(name for name, way in self._running.items() if way.interface not in there)
        for name in gone:
            way = self._running.pop(name)
            self.missing[name] = f"{way.uplink.card} has vanished"
            log.warning("%s has no network: its card %s has vanished", name, way.uplink.card)
        return gone

    def is_missing(self, name: str, why: str) -> None:
        """The qube runs and its card cannot be had: said once."""
        if self.missing.get(name) != why:
            log.warning("%s has no network: %s", name, why)
            self.missing[name] = why

    # -- and back

    async def stop(self, name: str) -> None:
        """Give the card of a qube back. Absent is fine. CardError when it stays in the room; it is tried again at the
        next stop."""
        self._running.pop(name, None)
        self.missing.pop(name, None)
        await self._undo(name)

    async def _undo(self, name: str) -> None:
        record = card_records.read(self._settings.run, name)
        if record is None:
            return
        back = await in_thread(record.undo)
        if record.moved and back is None:
            log.warning("%s, which %s had, is not there any more", record.card, name)
        elif record.moved and back != record.card:
            log.warning("%s is back as %s: another interface has its name now", record.card, back)
        await in_thread(card_records.let_go, self._settings.run, name)
        card_records.forget(self._settings.run, name)

    async def reclaim(self, running: Mapping[str, object]) -> None:
        """Give back the cards of qubes that do not run: their daemon was killed while it gave or took one."""
        for record in list(card_records.read_all(self._settings.run)):
            if record.qube not in running:
                try:
                    await self.stop(record.qube)
                except CardError as error:
                    log.error("%s", error)

    def release(self) -> None:
        """Stop watching; the cards stay where they are."""
        if self._timer is not None:
            self._timer.cancel()
        for events in self._events:
            asyncio.get_running_loop().remove_reader(events)
            events.close()
        self._events.clear()
        self._running.clear()
