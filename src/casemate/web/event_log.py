"""The last events of the daemon, for a person who wants to see what happens and who did it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from casemate.web.live import Live
from casemate.wire.admin import Event

KEPT_EVENTS = 400
"""Limit of the manager page (events): kept for the log on the page of the host. Older ones are forgotten."""
TOPIC = "events"
"""What streams are told about when there are more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. ``number`` counts from 1 in this process and never comes twice."""

    number: int
    at: float
    """Seconds since the epoch when it was heard."""
    subject: str
    """The qube that it is about; empty for the system."""
    name: str
    details: str


class EventLog:
    """Made once for a process; hears what ``live`` hears, so only while somebody looks at the page."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._entries: deque[Entry] = deque(maxlen=KEPT_EVENTS)
        self._number = 0
        live.listeners.append(self._hear)

    def _hear(self, event: Event) -> None:
        self._number += 1
        details = " ".join(f"{key}={value}" for key, value in event.details.items())
        self._entries.append(Entry(self._number, time.time(), event.subject, event.name, details))
        self._live.tell(TOPIC)

    def after(self, number: int) -> list[Entry]:
        """Those with a greater number, the newest first."""
        return [entry for entry in reversed(self._entries) if entry.number > number]
