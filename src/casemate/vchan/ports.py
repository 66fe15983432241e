"""Ports of the data channels into one domain: each used once at a time, never while an old listener may be found."""

from __future__ import annotations

import os
import time
from collections import deque

from casemate.calls.vchan_sockets import DATA_PORTS, FIRST_DATA_PORT, SocketDirectory

QUARANTINE = 2.0
"""Seconds that a port rests when its caller has left its socket's name behind."""


class Ports:
    """All ports into ``domain``, for any caller. The one given back longest ago is taken first.

    The agent of a domain tells of calls that it makes and of calls that it serves by the same message. So a port is not
    used for calls of two domains to each other at once: ``outgoing`` has (target, port) of the calls that it makes.
    """

    def __init__(self, vchans: SocketDirectory, domain: int) -> None:
        self._vchans = vchans
        self._domain = domain
        self._free = deque(range(FIRST_DATA_PORT, FIRST_DATA_PORT + DATA_PORTS))
        self._resting: deque[tuple[float, int]] = deque()
        self._callers: dict[int, int] = {}
        self.outgoing: set[tuple[int, int]] = set()

    @property
    def used(self) -> int:
        """How many are in use."""
        return len(self._callers)

    def allocate(self, caller: int) -> int | None:
        """A port for a call of ``caller``, None when there is none now. What lies at its name is removed."""
        now = time.monotonic()
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        for _ in range(len(self._free)):
            port = self._free.popleft()
            if (caller, port) in self.outgoing:
                self._free.append(port)
                continue
            try:
                os.unlink(self._vchans.path(caller, self._domain, port))
            except OSError:
                pass
            self._callers[port] = caller
            return port
        return None

    def has(self, caller: int, port: int) -> bool:
        """Whether the port is in use for a call of ``caller``."""
        return self._callers.get(port) == caller

    def release(self, caller: int, port: int) -> bool:
        """The call has ended; False when ``caller`` has no such port."""
        if self._callers.get(port) != caller:
            return False
        del self._callers[port]
        if os.path.lexists(self._vchans.path(caller, self._domain, port)):
            self._resting.append((time.monotonic() + QUARANTINE, port))
        else:
            self._free.append(port)
        return True

    def rest(self) -> float | None:
        """Seconds until a resting port can be had; None when none rests."""
        return max(0.0, self._resting[0][0] - time.monotonic()) if self._resting else None

    def reset(self) -> None:
        """The agent is another one: no call of before lives. Names may still be there, so all used ones rest."""
        until = time.monotonic() + QUARANTINE
        self._resting.extend((until, port) for port in self._callers)
        self._callers.clear()
        self.outgoing.clear()
