"""Connections of browsers: how many there may be, and how long one may take to ask."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

MAX_CONNECTIONS = 64
"""Limit of the manager page (connections): open at once. A browser opens six for each window."""
REQUEST_SECONDS = 5.0
"""Limit of the manager page (seconds): a connection that asks for nothing for that long is closed."""


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself keeps any number of connections that never send a whole request."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it at once where there are MAX_CONNECTIONS."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch(None)

    def _watch(self, seen: RequestResponseCycle | None) -> None:
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._look, seen)

    def _look(self, seen: RequestResponseCycle | None) -> None:
        """Close the connection if since the last look no request has come and none is being answered."""
        current: RequestResponseCycle | None = self.cycle
        if current is seen and (current is None or current.response_complete):
            self.transport.abort()
        else:
            self._watch(current)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
