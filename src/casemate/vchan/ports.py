"""Ports of the data channels into one domain: which are in use, which rest, and which one the next call gets."""

from __future__ import annotations

import os
import time
from collections import deque

from casemate.calls.vchan_sockets import DATA_PORTS, FIRST_DATA_PORT, SocketDirectory

QUARANTINE = 2.0
"""Seconds that a port is not given out again when its caller left the socket's name behind. A late peer of the old call
could still find that name."""
HOST = 0
"""Number of the host among the domains."""


class Ports:
    """All ports into ``domain``, whoever calls. Owned by the daemon's ``Domain``, and lives as long.

    The lowest free port is given out, as upstream's daemons do. Two domains may call each other at the same time, and
    an agent reports the end of a call that it made and of one that it served by the same message, (other domain, port).
    Three rules keep that message from being taken for another call's:

    * as upstream, callers with a higher number than ``domain`` get 514, 516, ... and those with a lower one 513, 515,
      ...; the host may have any. When its own are used up a caller gets a port of the other kind.
    * ``outgoing`` says which ports ``domain`` uses as a caller; none of them is given out for the other direction.
    * A caller gets a port that it has just used last of all: the agent at its end may not have reported yet.
    """

    def __init__(self, vchans: SocketDirectory, domain: int) -> None:
        self._vchans = vchans
        self._domain = domain
        self._free = set(range(FIRST_DATA_PORT, FIRST_DATA_PORT + DATA_PORTS))
        self._resting: deque[tuple[float, int]] = deque()
        self._callers: dict[int, int] = {}
        self._last: dict[int, tuple[int, float]] = {}
        """Of each port that was used: its last caller, and when it was given back."""
        self.outgoing: set[tuple[int, int]] = set()
        """(other domain, port) of each call that ``domain`` itself makes."""

    @property
    def used(self) -> int:
        """How many are in use."""
        return len(self._callers)

    def allocate(self, caller: int) -> int | None:
        """A port for a call of ``caller``, None when there is none now. What lies at its socket's path is removed."""
        now = time.monotonic()
        while self._resting and self._resting[0][0] <= now:
            self._free.add(self._resting.popleft()[1])
        usable = [port for port in self._free if (caller, port) not in self.outgoing]
        if not usable:
            return None
        port = min(usable, key=lambda port: self._order(caller, port, now))
        self._free.discard(port)
        try:
            os.unlink(self._vchans.path(caller, self._domain, port))
        except OSError:
            pass  # the caller of the last call took it away itself
        self._callers[port] = caller
        return port

    def _order(self, caller: int, port: int, now: float) -> tuple[bool, float, int]:
        """The smallest is taken first: ports of the caller's kind, then those it has not just used, then the lowest."""
        even = (port - FIRST_DATA_PORT) % 2 == 1
        last, when = self._last.get(port, (-1, 0.0))
        just_used = last == caller and now - when < QUARANTINE
        return caller != HOST and even != (caller > self._domain), when if just_used else 0.0, port

    def has(self, caller: int, port: int) -> bool:
        """Whether the port is in use for a call of ``caller``."""
        return self._callers.get(port) == caller

    def release(self, caller: int, port: int) -> bool:
        """The call has ended; False when ``caller`` has no such port."""
        if self._callers.get(port) != caller:
            return False
        del self._callers[port]
        now = time.monotonic()
        self._last[port] = caller, now
        if os.path.lexists(self._vchans.path(caller, self._domain, port)):
            self._resting.append((now + QUARANTINE, port))
        else:
            self._free.add(port)
        return True

    def rest(self) -> float | None:
        """Seconds until a resting port can be had; None when none rests."""
        return max(0.0, self._resting[0][0] - time.monotonic()) if self._resting else None

    def reset(self) -> None:
        """Another agent has come: no earlier call lives. Sockets' names may still be there, so all used ports rest."""
        until = time.monotonic() + QUARANTINE
        self._resting.extend((until, port) for port in self._callers)
        self._callers.clear()
        self.outgoing.clear()
