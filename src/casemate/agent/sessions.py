"""Calls that must wait until their user's graphical session is there (``wait-for-session`` in a configuration)."""

from __future__ import annotations

from collections import deque

from casemate.calls.service import refuse
from casemate.streams.stream import WINDOW, Handler, Stream
from casemate.wire.qrexec import EXIT_FAILED, EXIT_NO_SERVICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "qubes.WaitForSession"
MAX_HELD = 256
"""Limit of what a qube says of itself (calls): calls that wait for a user's session. It is upstream's number."""


class Held(Handler):
    """A call before its program runs: keeps what comes, at most two windows, and hands it over."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self.gone = False
        stream.handler = self

    def room(self) -> int:
        return 0 if self._pieces else WINDOW  # a window's worth at most: then the caller waits

    def on_data(self, data: memoryview) -> None:
        self._pieces.append(bytes(data))

    def on_eof(self) -> None:
        self._ended = True

    def on_abort(self, why: str) -> None:
        self.gone = True
        self._pieces.clear()

    def replay(self) -> None:
        """Give what has come to the handler that has taken the stream over."""
        while self._pieces:
            self._stream.handler.on_data(memoryview(self._pieces.popleft()))
        if self._ended:
            self._stream.handler.on_eof()
        self._stream.resume()


class Sessions:
    """Runs one waiter for each user, however many calls wait.

    ``run_waiter(user, source, done)`` starts ``qubes.WaitForSession`` with the user's name as its input, as a call of
    the qube ``source``, and calls ``done(status)`` when it has ended.
    """

    def __init__(self, run_waiter: Callable[[str, str, Callable[[int], None]], None]) -> None:
        self._run_waiter = run_waiter
        self._held: dict[str, list[tuple[Stream, Held, Callable[[], None]]]] = {}

    def hold(self, stream: Stream, user: str, source: str, start: Callable[[], None]) -> None:
        """Call ``start`` once the user's session is there; until then the stream is held. ``source`` calls."""
        if sum(map(len, self._held.values())) >= MAX_HELD:
            refuse(stream, EXIT_FAILED, "too many calls wait for a session\n")
            return
        held = Held(stream)
        waiting = self._held.get(user)
        if waiting is not None:
            waiting.append((stream, held, start))
            return
        self._held[user] = [(stream, held, start)]
        self._run_waiter(user, source, lambda status: self._done(user, status))

    def _done(self, user: str, status: int) -> None:
        for stream, held, start in self._held.pop(user, []):
            if held.gone:
                continue
            if status not in (0, EXIT_NO_SERVICE):
                refuse(stream, EXIT_FAILED, f"there is no session of {user} ({SERVICE}: status {status})\n")
                continue
            start()
            held.replay()
