"""Facts about qubes on their way from the engine to whoever shows them: (qube, event, details)."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

Listener = Callable[[str, str, dict[str, str]], None]
"""Called with the qube's name (empty: the system), the event's upstream name and its details."""


class Bus:
    """Delivers in order, at once; a listener that fails is logged and harms nobody."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` for everything said from now on."""
        self._listeners.append(listener)

    def say(self, subject: str, event: str, **details: str) -> None:
        """Tell all listeners."""
        for listener in self._listeners:
            try:
                listener(subject, event, details)
            except Exception:
                log.exception("a listener failed on %s of %s", event, subject)
