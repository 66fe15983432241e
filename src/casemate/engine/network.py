"""Keeps the wire room in step with the store: taps, rules and uplinks of the qubes that run.

::

    start ── NetworkStep.up ──▶ plug ──┐
    end ──── NetworkStep.down ▶ unplug ┤
    store ── a commit ─────────▶ wake ─┼──▶ apply: plan ──▶ parts ──▶ one transaction ──▶ machines: plug, unplug
    firewall changed ──────────▶ wake ─┤
    pasta, a card or the room ended ───┘

All of it happens under one lock, so that two changes never meet in the room. A plan is always computed from the newest
store, so a change that comes late cannot undo a later one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from casemate.engine.accounts import Accounts
from casemate.engine.commits import after_each
from casemate.engine.firewall import Firewalls
from casemate.engine.steps import Start
from casemate.engine.wires import Wires
from casemate.host.cards import CardError
from casemate.host.hypervisor import Hypervisor, Nic
from casemate.host.own_addresses import AddressWatch, own_addresses
from casemate.host.room.namespaces import NoRoomError
from casemate.host.room.nft import Command
from casemate.model.domain import Domain
from casemate.network import guard, parts
from casemate.network.parts import Part
from casemate.network.plan import (
    Ends,
    Plan,
    ends,
    has_uplink,
    has_wire,
    make_plan,
    served_tap,
    uplink_tap,
    upstream_tap,
)
from casemate.network.ways_out import WaysOut
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import CasemateError, StartError

log = logging.getLogger(__name__)

_DAY = 86400.0
_EXPIRY_SECONDS = 0.5
"""After the second in which a rule ends: rules say whole seconds, and what was announced early would be kept."""
_AGAIN_SECONDS = 1.0
"""Before an uplink that ended is started anew: one that ends at once must not keep the host busy."""


class Network:
    """Owns the table of qubes that are plugged in, and what was loaded last into the room."""

    def __init__(
        self,
        store: Store,
        wires: Wires,
        hypervisor: Hypervisor,
        accounts: Accounts,
        ways: WaysOut,
        firewalls: Firewalls,
    ) -> None:
        self._store = store
        self._wires = wires
        self._hypervisor = hypervisor
        self._accounts = accounts
        self._ways = ways
        self._firewalls = firewalls
        self._loop = asyncio.get_running_loop()
        self._plugged: dict[str, Ends] = {}
        self._complete: set[str] = set()
        self._loaded: dict[str, Part] | None = None
        self._hosts: Sequence[Command] = []
        self._down: set[str] = set()
        self._reject = True
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watch: AddressWatch | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self.plan = Plan()
        """What the room was last made to be."""

    @property
    def wires(self) -> Wires:
        """The room."""
        return self._wires

    @property
    def ways(self) -> WaysOut:
        """The uplinks."""
        return self._ways

    # -- following

    async def start(self, running: Mapping[str, Sequence[Nic]]) -> None:
        """Take over the qubes that run, by name with their interfaces; then follow the store."""
        system = self._store.snapshot()
        for name, found in running.items():
            qid = system.domains[name].qid
            taps = {nic.tap: nic.mac for nic in found}
            self._plugged[name] = Ends(taps.get(upstream_tap(qid)), served_tap(qid) in taps)
            try:
                await self._ways.adopt(name, self._wires.room)
            except CasemateError as error:
                log.error("%s: its uplink: %s", name, error)  # it is brought below, as one that is missing
        await self._ways.cards.reclaim(running)
        self._complete = set(running)
        after_each(self._store, self.changed)
        self._ways.listen(self._uplink_ended, self.changed)
        self._watch = AddressWatch(self.changed)
        if not self._wires.why:
            try:
                async with self._lock:
                    await self._load()
            except CasemateError as error:
                log.error("the network of running qubes: %s", error)
        self.changed()
        self._task = asyncio.create_task(self._run())

    async def room_restarted(self) -> None:
        """The room's process was started anew: put all rules again, in case it ended between two of them."""
        async with self._lock:
            self._loaded = None
            await self._load()

    async def enforce(self) -> None:
        """Have the newest rules hold on this host when this returns; an error tells who is cut off because of them."""
        async with self._lock:
            if self._loaded is not None:
                await self._load()

    def _uplink_ended(self, _name: str) -> None:
        self._loop.call_later(_AGAIN_SECONDS, self.changed)

    def changed(self) -> None:
        """Something that the plan is made of may have changed."""
        self._wake.set()

    def heard(self, event: ApiEvent) -> None:
        """A listener for the bus. A qube whose start is complete can be given an interface, or relieved of one."""
        if isinstance(event, ev.DomainStart):
            self._complete.add(event.subject)
            self.changed()
        elif isinstance(event, ev.FirewallChanged):
            self.changed()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._follow()
            except CasemateError as error:
                log.error("the network of qubes could not follow a change: %s", error)

    async def _follow(self) -> None:
        if self._wires.why:
            return
        system = self._store.snapshot()
        if self._wires.room is not None:
            async with self._lock:
                for name in await self._ways.cards.look(self._wires.room):
                    if name in system.domains:
                        self._begin_anew(system.domains[name].qid)
        for name in [name for name in self._plugged if name in system.domains and has_uplink(system.domains[name])]:
            await self._bring_uplink(system.domains[name])
        async with self._lock:
            await self._load()
        # Outside the lock: a guest has ten seconds to let go of an interface, and others start meanwhile.
        for name in sorted(self._complete & self._plugged.keys() & system.domains.keys()):
            domain = system.domains[name]
            try:
                if has_wire(domain) and self._plugged[name].mac is None:
                    await self._attach(domain)
                elif not has_wire(domain) and self._plugged[name].mac is not None:
                    await self._detach(domain)
            except CasemateError as error:
                log.error("%s: its network interface: %s", name, error)

    async def _bring_uplink(self, domain: Domain) -> None:
        """Start the uplink of a running qube again, or for the first time."""
        name = domain.name
        if self._ways.has(name) or self._plugged[name].mac is None:
            return
        try:
            async with self._lock:
                await self._start_uplink(domain)
        except CardError as error:
            # It is tried again when an interface comes or goes.
            self._ways.cards.is_missing(name, str(error))
        except CasemateError as error:
            log.error("%s: its uplink: %s", name, error)
            self._loop.call_later(_AGAIN_SECONDS, self.changed)

    async def close(self) -> None:
        """Stop following; wires and uplinks go on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._watch is not None:
            self._watch.close()
        if self._expiry is not None:
            self._expiry.cancel()
        self._ways.release()

    # -- qubes come and go

    async def plug(self, domain: Domain) -> None:
        """Make the taps of a qube that starts, with their rules; StartError, and nothing is left, when they cannot be.

        A qube that needs no interface is only written down: it may be given one later.
        """
        wanted = ends(domain)
        async with self._lock:
            self._plugged[domain.name] = wanted
            if wanted == Ends(None, False):
                return
            try:
                if self._wires.why:
                    raise NoRoomError(f"qubes have no network on this host: {self._wires.why}")
                if has_uplink(domain):
                    await self._start_uplink(domain)
                await self._load()
            except CasemateError as error:
                raise StartError(f"{domain.name} gets no network interface: {error}") from error

    async def unplug(self, domain: Domain) -> None:
        """Remove the taps of a qube that has ended, with their rules. Nothing to do when it has none."""
        async with self._lock:
            had = self._plugged.pop(domain.name, None)
            self._complete.discard(domain.name)
            if had is not None and had != Ends(None, False) and self._loaded is not None:
                await self._load()
            await self._ways.stop(domain.name)

    async def _attach(self, domain: Domain) -> None:
        name, nic = domain.name, Nic(upstream_tap(domain.qid), domain.mac.lower())
        async with self._lock:
            self._plugged[name] = replace(self._plugged[name], mac=nic.mac)
            if has_uplink(domain):
                await self._start_uplink(domain)
            await self._load()
        try:
            await self._hypervisor.attach_nic(domain.uuid, nic)
        except CasemateError:
            await self._forget(name)
            raise

    async def _detach(self, domain: Domain) -> None:
        """Nothing passes the wire any more when this begins: the plan says so."""
        await self._hypervisor.detach_nic(domain.uuid, upstream_tap(domain.qid))
        await self._forget(domain.name)

    async def _forget(self, name: str) -> None:
        async with self._lock:
            if name in self._plugged:
                self._plugged[name] = replace(self._plugged[name], mac=None)
                await self._load()
                await self._ways.stop(name)

    # -- the room; all below needs the lock

    async def _start_uplink(self, domain: Domain) -> None:
        room = self._wires.room
        assert room is not None
        mac = self._plugged[domain.name].mac or domain.mac.lower()
        await self._ways.start(domain, mac, room, self._wires.names)
        self._begin_anew(domain.qid)
        self._down.add(uplink_tap(domain.qid))

    def _begin_anew(self, qid: int) -> None:
        """Have the rules on both sides of an uplink loaded again. An interface that went took its chain with it, or
        left it without a device, as the kernel's version is; and rules refer to interfaces by number."""
        for name in (uplink_tap(qid), upstream_tap(qid)):
            if self._loaded is not None and name in self._loaded:
                old = self._loaded[name]
                self._loaded[name] = replace(old, chains=dict.fromkeys(old.chains, ()))

    def _plan(self, isolated: frozenset[str] = frozenset()) -> Plan:
        pastas, cards = self._ways.pastas.running(), self._ways.cards.running()
        plan = make_plan(self._store.snapshot(), self._plugged, pastas, cards, self._firewalls.rules_or_none)
        if isolated:
            wires = tuple(replace(one, peer=None) if one.name in isolated else one for one in plan.wires)
            plan = replace(plan, wires=wires)
        return plan

    async def _load(self) -> None:
        """Make the room what the plan says. If a change cannot be loaded, the qubes that it is about are cut off."""
        plan = self._plan()
        try:
            await self._send(plan)
        except CasemateError as error:
            if self._loaded is None:
                raise
            changed = {tap for tap, part in self._parts(plan).items() if self._loaded.get(tap) != part}
            cut = frozenset(wire.name for wire in plan.wires if wire.tap in changed)
            log.error("%s are cut off, because their rules were refused: %s", ", ".join(sorted(cut)), error)
            await self._send(self._plan(cut))
            raise

    def _parts(self, plan: Plan) -> dict[str, Part]:
        return guard.parts(plan, self._reject)

    async def _send(self, plan: Plan) -> None:
        system = self._store.snapshot()
        uids = {system.domains[n].qid: self._uid(system.domains[n]) for n in self._plugged if n in system.domains}
        hosts, taps = parts.host_addresses(*own_addresses()), plan.taps(uids)
        after = self._parts(plan)
        if self._loaded is None:
            there = await self._wires.names()
            stale = [name for name in there if name not in after and name not in {tap.name for tap in taps}]
            links = [part.device for part in after.values()]
            try:
                await self._wires.apply(taps, parts.everything(after, hosts), links, stale)
            except CasemateError:
                if not self._reject:
                    raise
                # A kernel without nft_reject_netdev: what is refused is dropped without a word there.
                self._reject = False
                after = self._parts(plan)
                await self._wires.apply(taps, parts.everything(after, hosts), links, stale)
        else:
            commands = parts.changes(self._loaded, after)
            if hosts != self._hosts:
                commands = [*hosts, *commands]
            new = [tap for tap in after if tap not in self._loaded]
            gone = [tap for tap in self._loaded if tap not in after]
            up = [after[tap].device for tap in (*new, *(t for t in self._down if t in after and t not in new))]
            if commands or up or gone:
                await self._wires.apply([tap for tap in taps if tap.name in new], commands, up, gone)
        self._loaded, self._hosts, self.plan = after, hosts, plan
        self._down.clear()
        self._await_expiry(plan)

    def _await_expiry(self, plan: Plan) -> None:
        """Announce rules that have come to their end, so that net qubes hear of it. The room's own rules compare the
        time themselves: there nothing depends on anybody being awake."""
        if self._expiry is not None:
            self._expiry.cancel()
        ends_at = [int(rule["expire"]) for wire in plan.wires for rule in wire.rules if "expire" in rule]
        self._expiry = None
        if ends_at:
            # Looked at anew after a day at most: a clock may be set, and timers of years are no use.
            wait = min(max(min(ends_at) - time.time(), 0) + _EXPIRY_SECONDS, _DAY)
            self._expiry = self._loop.call_later(wait, self._expired, plan)

    def _expired(self, plan: Plan) -> None:
        system = self._store.snapshot()
        now = time.time()
        for wire in plan.wires:
            if any(int(rule.get("expire", now + 1)) <= now for rule in wire.rules) and wire.name in system.domains:
                self._firewalls.announce(system.domains[wire.name])
        self.changed()

    def _uid(self, domain: Domain) -> int | None:
        owner = self._accounts.of(domain)
        return None if owner is None else owner.uid


class NetworkStep:
    """The taps of a qube, with all rules that guard them, before its machine is made."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def up(self, start: Start) -> None:
        """Plug the qube in; what it sends is dropped unless its rules say otherwise, from the first frame."""
        await self._network.plug(start.domain)

    async def down(self, domain: Domain) -> None:
        """Remove them. The machine has ended before."""
        await self._network.unplug(domain)
