"""A small poll loop: descriptors, timers, one thread, standard library only."""

from __future__ import annotations

import heapq
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[int], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR


class Loop:
    """Calls a handler with the event mask when its descriptor is ready. Level-triggered."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._masks: dict[int, int] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._fresh: set[int] = set()
        self._running = True

    def watch(self, fd: int, mask: int, handler: Handler) -> None:
        """Watch a descriptor, or change what is watched. A mask of 0 stops watching it."""
        old = self._masks.get(fd)
        if mask == 0:
            if old is not None:
                del self._masks[fd], self._handlers[fd]
                self._epoll.unregister(fd)
            return
        self._handlers[fd] = handler
        if old is None:
            self._epoll.register(fd, mask)
            self._fresh.add(fd)
        elif old != mask:
            self._epoll.modify(fd, mask)
        self._masks[fd] = mask

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor; call it before closing one."""
        self.watch(fd, 0, _nothing)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` once, ``seconds`` from now."""
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, action))

    def stop(self) -> None:
        """Make ``run`` return after the present round."""
        self._running = False

    def run(self) -> None:
        """Serve until ``stop``."""
        while self._running:
            self.once(None)

    def once(self, timeout: float | None) -> None:
        """One round: wait at most ``timeout`` seconds (None: until something happens) and serve what is ready."""
        if self._timers:
            wait = max(0.0, self._timers[0][0] - time.monotonic())
            timeout = wait if timeout is None else min(wait, timeout)
        ready = self._epoll.poll(timeout)
        # A handler may close a descriptor that is ready too, and another get its number: what was told of the old one
        # is not the new one's. Nothing is missed, readiness is told again.
        self._fresh.clear()
        for fd, mask in ready:
            handler = self._handlers.get(fd)
            if handler is not None and fd not in self._fresh:
                handler(mask)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def busy(self) -> bool:
        """True while anything is watched."""
        return bool(self._handlers)

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()


def _nothing(mask: int) -> None:
    pass
