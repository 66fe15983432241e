"""The event loop: descriptors by epoll(7), timers; one thread, standard library only."""

from __future__ import annotations

import heapq
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Watcher = Callable[[int], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR


class Timer:
    """One call in the future, until it is cancelled. Made by ``Loop.later``."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Do not call it; what it would have called is let go of at once."""
        self.action = None


class Loop:
    """Calls a watcher with the event mask when its descriptor is ready. Level-triggered."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watchers: dict[int, Watcher] = {}
        self._masks: dict[int, int] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._soon: list[Callable[[], None]] = []
        self._count = 0
        self._fresh: set[int] = set()
        self._always: set[int] = set()
        self._running = True

    def watch(self, fd: int, mask: int, watcher: Watcher) -> None:
        """Watch a descriptor, or change what is watched. A mask of 0 stops watching it."""
        old = self._masks.get(fd)
        if mask == 0:
            if old is not None:
                del self._masks[fd], self._watchers[fd]
                if fd in self._always:
                    self._always.discard(fd)
                else:
                    self._epoll.unregister(fd)
            return
        self._watchers[fd] = watcher
        if old is None:
            try:
                self._epoll.register(fd, mask)
            except PermissionError:
                # Regular files and /dev/null cannot be polled: they never block, so they are always ready.
                self._always.add(fd)
            self._fresh.add(fd)
        elif old != mask and fd not in self._always:
            self._epoll.modify(fd, mask)
        self._masks[fd] = mask

    def unwatch(self, fd: int) -> None:
        """Stop watching a descriptor. To be called before it is closed.

        To close it would do only where no other process has the file open. Even a descriptor that is closed on exec may
        be: posix_spawn(3) returns before the child has closed its copies, and so long epoll goes on telling of the old
        file under a number that may be another file's by then.
        """
        self.watch(fd, 0, _nothing)

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` once, ``seconds`` from now."""
        self._count += 1
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, timer))
        return timer

    def soon(self, action: Callable[[], None]) -> None:
        """Call ``action`` once, when all that is ready in this round has been served."""
        self._soon.append(action)

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
        if self._soon:
            timeout = 0
        if self._always:
            ready = self._ready_always()
            ready += self._epoll.poll(0 if ready else timeout)
        else:
            ready = self._epoll.poll(timeout)
        # A watcher may close a descriptor that is ready too, and another get its number: what was told of the old one
        # is not the new one's. Nothing is missed, readiness is told again.
        self._fresh.clear()
        for fd, mask in ready:
            watcher = self._watchers.get(fd)
            if watcher is not None and fd not in self._fresh:
                watcher(mask)
        while self._soon:
            actions, self._soon = self._soon, []
            for action in actions:
                action()
        if self._timers:
            self._run_timers()

    def _ready_always(self) -> list[tuple[int, int]]:
        return [(fd, mask) for fd in self._always if (mask := self._masks[fd] & (READ | WRITE))]

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            action = heapq.heappop(self._timers)[2].action
            if action is not None:
                action()

    def busy(self) -> bool:
        """True while anything is watched."""
        return bool(self._watchers)

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()


def _nothing(_mask: int) -> None:
    pass
