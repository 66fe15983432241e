"""The contract of a byte stream: what its owner calls (``Stream``) and what it calls (``Handler``)."""

from __future__ import annotations

from casemate.wire.mux import LEAST_ROOM, WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol
else:
    Protocol = object  # the typing module is too slow to import in a guest

__all__ = ["LEAST_ROOM", "WINDOW", "Handler", "Stream"]

_INPUT = memoryview(bytearray(128 * 1024))
"""Where descriptors are read into unless a handler has a better place. One for the process: there is one thread, and
no handler keeps what it is given."""


class Handler:
    """What the owner of a stream implements. The base class takes everything and does nothing with it.

    A stream's ``handler`` may be replaced at any time; the new one gets what comes from then on.
    """

    def room(self) -> int:
        """Bytes that may be handed over now. After 0, call the stream's ``resume`` when there is room again."""
        return WINDOW

    def buffer(self) -> memoryview:
        """Where a descriptor is to be read into, at most ``room`` bytes; empty when there is no room.

        A handler overrides this and ``filled`` to have bytes read straight to where they go.
        """
        room = self.room()
        return _INPUT if room >= len(_INPUT) else _INPUT[:room]

    def filled(self, count: int) -> None:
        """``count`` bytes of the peer lie in what ``buffer`` returned last."""
        self.on_data(_INPUT[:count])

    def take(self, fd: int) -> bool:
        """Move some of what waits in the descriptor ``fd`` to where it goes, by splice(2); False: read it as usual.

        The bytes then never come into this process. False too at the end of the input: reading tells of that.
        """
        return False

    def on_data(self, data: memoryview) -> None:
        """Bytes of the peer; the view is good during the call only."""

    def on_eof(self) -> None:
        """The peer sends no more. Called once, after all of its data."""

    def on_room(self) -> None:
        """The stream takes bytes again after ``Stream.room`` had returned 0."""

    def on_abort(self, why: str) -> None:
        """The stream is gone before both directions had ended; the last call of all."""

    def on_closed(self) -> None:
        """Both directions have ended and everything was sent; the last call of all."""


class Stream(Protocol):
    """An ordered stream of bytes in each direction."""

    handler: Handler

    def room(self) -> int:
        """Bytes that may be written now: LEAST_ROOM or more, else 0; then ``on_room`` tells of more.

        Less than LEAST_ROOM counts as none, because a writer must fit the header of its own message in.
        """

    def write(self, data: bytes | memoryview) -> None:
        """Send ``data``. What cannot go at once is copied and kept: who writes more than ``room`` breaks the bound."""

    def writev(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send several pieces as one, as ``write`` does."""

    def space(self) -> memoryview:
        """A buffer of at most ``room`` bytes for the caller to fill; ``commit`` sends what it put there.

        Nothing else may be written to the stream in between. This saves a copy where bytes come from a descriptor.
        """

    def commit(self, count: int) -> None:
        """Send the first ``count`` bytes of what ``space`` returned last."""

    def splice_message(self, head: bytes, pipe: int, count: int) -> bool:
        """Send ``head`` and then ``count`` bytes that wait in a non-blocking ``pipe``, without reading them.

        Together at most ``room`` bytes. False when nothing was sent, because this stream cannot or not now: read and
        write as usual then. OSError when the bytes are not there, because another process has read from the pipe: the
        peer would wait for them in vain, so the stream is to be aborted.
        """

    def resume(self) -> None:
        """The handler has room again."""

    def eof(self) -> None:
        """Send no more; the peer sees the end after all that was written."""

    def finish(self) -> None:
        """Send what waits, then let go in both directions. What the peer still sends is thrown away."""

    def abort(self) -> None:
        """Let go in both directions at once. The handler is not called again."""
