"""Many time-outs of one length on one timer: setting and cancelling one costs a dictionary entry."""

from __future__ import annotations

import time

from casemate.streams.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Deadlines:
    """Calls the action of each key that was not discarded within ``seconds``, at most an eighth of that later."""

    def __init__(self, loop: Loop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._waiting: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._armed = False

    def add(self, what: Hashable, action: Callable[[], None]) -> None:
        """Call ``action`` when ``what`` is still there at its deadline."""
        self._waiting.pop(what, None)  # in order of their deadlines, so at the end
        self._waiting[what] = (time.monotonic() + self._seconds, action)
        if not self._armed:
            self._armed = True
            self._loop.later(self._seconds, self._due)

    def discard(self, what: Hashable) -> None:
        """It came in time; nothing happens for what is not there."""
        self._waiting.pop(what, None)

    def oldest(self) -> Callable[[], None] | None:
        """The action of what has waited longest."""
        for _deadline, action in self._waiting.values():
            return action
        return None

    def __len__(self) -> int:
        return len(self._waiting)

    def _due(self) -> None:
        self._armed = False
        now = time.monotonic()
        late = []
        for what, (deadline, action) in self._waiting.items():
            if deadline > now:
                break
            late.append((what, action))
        for what, action in late:
            if self._waiting.pop(what, None) is not None:
                action()
        if self._waiting and not self._armed:
            self._armed = True
            deadline = next(iter(self._waiting.values()))[0]
            self._loop.later(max(deadline - time.monotonic(), self._seconds / 8), self._due)
