"""Sends events to subscribers: changes of the store and of machines, to all of them in one order.

::

    store (any thread) ── commits ──> events_of() ─┐
    engine ── Bus ─────────────────────────────────┼──> Subscriptions ──> Subscription ──> FrameSink (a connection)
    handlers ── publish() ─────────────────────────┘                      what its caller may hear about

Nothing here waits for a subscriber: one that does not read is disconnected when QUEUE_LIMIT frames wait for it.
"""

from __future__ import annotations

import logging
import select
import threading
from asyncio import AbstractEventLoop, get_running_loop
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from casemate.model import changes as ch
from casemate.model.classes import following
from casemate.model.system import System
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire.admin import ADMIN, build_event
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import CasemateError, ProtocolError

_log = logging.getLogger(__name__)

QUEUE_LIMIT = 1000
"""Limit of the Admin API: events waiting for one subscriber; then it is disconnected."""
MAX_SUBSCRIPTIONS = 64
"""Limit of the Admin API: subscribers of events."""
MAX_OF_ONE_QUBE = 8
"""Limit of the Admin API: subscriptions of one qube."""

Visible = Callable[[str], bool] | None
"""Whether the caller may know of a qube, by name; None for a caller that may know of all."""


class FrameSink(Protocol):
    """Where frames go: the transport of a connection, or a qrexec call that looks like one."""

    def write(self, data: bytes) -> None:
        """Send a frame, or buffer it."""

    def close(self) -> None:
        """End the stream when everything is sent."""

    def abort(self) -> None:
        """End the stream at once."""

    def get_extra_info(self, name: str) -> Any:
        """For ``"socket"`` the socket, or None."""


class Subscription:
    """One subscriber. It is made when a call subscribes, and discarded when its connection is lost."""

    def __init__(self, transport: FrameSink, dest: str, visible: Visible = None) -> None:
        """``dest`` is the qube that events are wanted about, dom0 for all of them."""
        self._transport = transport
        self._dest = dest
        self._visible = visible
        self._known: set[str] = set()
        """What was visible when it was last asked. The policy cannot be asked about a qube that was removed."""
        self._waiting: deque[bytes] | None = None
        self.closed = False
        self.source = ADMIN
        """Whose subscription this is."""

    def wants(self, subject: str) -> bool:
        """Whether an event about ``subject`` is for this subscriber; dom0's is for everything."""
        return self._dest in (ADMIN, subject) and (self._visible is None or not subject or self.sees(subject))

    def sees(self, name: str, gone: bool = False) -> bool:
        """Whether the caller may hear about a qube; ``gone``: of a removed one, what was allowed before it went."""
        if self._visible is None:
            return True
        if gone:
            found = name in self._known
            self._known.discard(name)
            return found
        if self._visible(name):
            self._known.add(name)
            return True
        self._known.discard(name)
        return False

    def takes(self, event: ApiEvent) -> bool:
        """Whether an event is for this subscriber."""
        if not self.wants(event.subject):
            return False
        if self._visible is None or event.subject:
            return True
        # Events about the system name a qube where it comes or goes. That must not tell of one that may not be seen.
        about = getattr(event, "vm", None)
        return about is None or self.sees(about, isinstance(event, ev.DomainRemoved))

    def learn(self, names: Iterable[str]) -> None:
        """Remember which qubes are visible now."""
        if self._visible is not None:
            for name in names:
                self.sees(name)

    def send(self, frame: bytes) -> None:
        """Write a frame, or queue it until the socket takes more. Disconnects a subscriber that is too far behind."""
        if self.closed:
            return
        if self._waiting is None:
            self._transport.write(frame)
        elif len(self._waiting) < QUEUE_LIMIT:
            self._waiting.append(frame)
        else:
            _log.warning("a subscriber of events does not read; disconnected with %d frames waiting", QUEUE_LIMIT)
            self.closed = True
            self._transport.abort()

    def send_all(self, event: ApiEvent) -> None:
        """Write the frames of an event."""
        for frame in event.frames():
            self.send(build_event(*frame))

    def pause(self) -> None:
        """The socket takes no more for now."""
        if self._waiting is None:
            self._waiting = deque()

    def resume(self) -> None:
        """The socket takes more."""
        waiting, self._waiting = self._waiting, None
        while waiting and self._waiting is None:
            self.send(waiting.popleft())
        if waiting and self._waiting is not None:
            self._waiting.extend(waiting)

    def gone(self) -> bool:
        """Whether the other side has closed its socket. A half-close is normal, so only a hang-up counts (POLLHUP)."""
        connection = self._transport.get_extra_info("socket")
        if self.closed or connection is None or connection.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(connection.fileno(), 0)  # with no events asked for, poll(2) still reports POLLHUP and POLLERR
        return bool(poll.poll(0))

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self._transport.close()


class Stream(NamedTuple):
    """A subscription that a call began, and what to call when its connection has ended."""

    subscription: Subscription
    discard: Callable[[Subscription], None]


class Subscriptions:
    """All subscribers. Make it in the running loop; it subscribes to the store by itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop: AbstractEventLoop = get_running_loop()
        self._thread = threading.get_ident()
        self._commits: deque[Sequence[ch.Change]] = deque()
        self._subscribers: list[Subscription] = []
        store.subscribe(self._committed)

    def __len__(self) -> int:
        return len(self._subscribers)

    def add(
        self,
        transport: FrameSink,
        dest: str,
        visible: Visible = None,
        source: str = ADMIN,
    ) -> Subscription:
        """A new subscriber; its first event says that it is connected. Raises CasemateError where there are too
        many."""
        self._subscribers = [s for s in self._subscribers if not s.gone()]
        if len(self._subscribers) >= MAX_SUBSCRIPTIONS:
            raise CasemateError(f"There are {MAX_SUBSCRIPTIONS} subscribers of events already")
        if source != ADMIN and sum(s.source == source for s in self._subscribers) >= MAX_OF_ONE_QUBE:
            raise CasemateError(f"A qube may have {MAX_OF_ONE_QUBE} subscriptions at most")
        subscription = Subscription(transport, dest, visible)
        subscription.source = source
        if visible is not None:
            subscription.learn(self._store.snapshot().domains)
        subscription.send_all(ev.Connected())
        self._subscribers.append(subscription)
        return subscription

    def discard(self, subscription: Subscription) -> None:
        """A subscriber is gone."""
        subscription.closed = True
        if subscription in self._subscribers:
            self._subscribers.remove(subscription)

    def close(self) -> None:
        """End all streams."""
        for subscription in self._subscribers:
            subscription.close()
        self._subscribers.clear()

    def publish(self, event: ApiEvent) -> None:
        """Send an event to whom it concerns; call it in the loop's thread."""
        self._drain()
        self._send(event)

    def _send(self, event: ApiEvent) -> None:
        wanting = [s for s in self._subscribers if s.takes(event)]
        for frame in event.frames() if wanting else ():
            try:
                data = build_event(*frame)
            except ProtocolError as error:
                _log.error("event %s is not sent: %s", frame.name, error)
                continue
            for subscription in wanting:
                subscription.send(data)

    def _committed(self, changes: Sequence[ch.Change]) -> None:
        # Called in the thread that committed. Events are sent in the loop's thread alone, in the order of commits.
        self._commits.append(changes)
        if threading.get_ident() == self._thread:
            self._drain()
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        while self._commits:
            changes = self._commits.popleft()
            if not self._subscribers:
                continue
            system = self._store.snapshot()
            for change in changes:
                for event in events_of(change, system):
                    self._send(event)


def events_of(change: ch.Change, system: System) -> Iterator[ApiEvent]:
    """The events that upstream's clients expect for a change; ``system`` is the one after the commit."""
    match change:
        case ch.PropertySet(domain, name, new, old, had_old):
            yield ev.PropertySet(domain or "", name, str(new), str(old) if had_old else None)
            yield from _derived(domain, name, system)
        case ch.PropertyReset(domain, name, old, had_old):
            yield ev.PropertyReset(domain or "", name, str(old) if had_old else None)
            yield from _derived(domain, name, system)
        case ch.FeatureSet(domain, feature, value, before):
            yield ev.FeatureSet(domain, feature, value, before)
        case ch.FeatureRemoved(domain, feature, _):
            yield ev.FeatureRemoved(domain, feature)
        case ch.TagAdded(domain, tag):
            yield ev.TagAdded(domain, tag)
        case ch.TagRemoved(domain, tag):
            yield ev.TagRemoved(domain, tag)
        case ch.DomainAdded(name, _):
            yield ev.DomainAdded(name)
            added = system.domains.get(name)
            for tag in added.tags if added is not None else ():
                if tag.startswith("created-by-"):
                    yield ev.TagAdded(name, tag)
        case ch.DomainRemoved(name, _):
            yield ev.DomainRemoved(name)
        case ch.DeviceAssigned(domain, devclass, device, options):
            yield ev.DeviceAssigned(domain, devclass, device, dict(options))
        case ch.DeviceAssignmentChanged(domain, devclass, device):
            yield ev.DeviceAssignmentChanged(domain, devclass, device)
        case ch.DeviceUnassigned(domain, devclass, device):
            yield ev.DeviceUnassigned(domain, devclass, device)
        case ch.PoolAdded(name):
            yield ev.PoolAdded(name)
        case ch.PoolRemoved(name):
            yield ev.PoolRemoved(name)
        case _:
            return  # volumes, labels and options of pools have no events


def _derived(domain: str | None, name: str, system: System) -> Iterator[ApiEvent]:
    """Other properties whose value changed with one."""
    if domain is not None:
        if name == "label":
            yield ev.PropertyChanged(domain, "icon")
        return
    for dependent in following(name):
        for qube in system.domains.ordered():
            if qube.has(dependent) and not qube.is_set(dependent) and dependent not in qube.defaults:
                yield ev.PropertyChanged(qube.name, dependent)
