"""Events of qubes on their way from the engine to whoever shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from casemate.wire.api_event import ApiEvent

log = logging.getLogger(__name__)

Listener = Callable[[ApiEvent], None]
"""Called with each event, in the event loop's thread."""


class Bus:
    """Delivers in order, at once; a listener that fails is logged and harms nobody."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` for everything said from now on."""
        self._listeners.append(listener)

    def say(self, event: ApiEvent) -> None:
        """Tell all listeners."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed on %r", event)
