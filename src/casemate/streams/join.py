"""Makes two streams one: bytes of each go to the other, and each direction ends for itself."""

from __future__ import annotations

from casemate.streams.stream import Handler, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class _End(Handler):
    """The handler of one of the two streams: sends on what comes from it."""

    __slots__ = ("_other", "_pair", "_space", "ended", "stream")

    def __init__(self, pair: _Pair, stream: Stream, other: Stream) -> None:
        self.stream = stream
        self._pair = pair
        self._other = other
        self._space = memoryview(b"")
        self.ended = False

    def room(self) -> int:
        return self._other.room()

    def buffer(self) -> memoryview:
        self._space = self._other.space()
        return self._space

    def filled(self, count: int) -> None:
        self._other.commit(count)

    def on_data(self, data: memoryview) -> None:
        self._other.write(data)

    def on_eof(self) -> None:
        self.ended = True
        self._other.eof()
        self._pair.end(self.stream)

    def on_room(self) -> None:
        self._other.resume()

    def on_abort(self, why: str) -> None:
        if self.ended:
            self._other.finish()  # it has said all that it had to say: that still arrives
        else:
            self._other.abort()
        self._pair.finish(why)


class _TappedEnd(_End):
    """Shows what passes to ``tap``."""

    __slots__ = ("_tap",)

    def __init__(self, pair: _Pair, stream: Stream, other: Stream, tap: Callable[[memoryview], None]) -> None:
        super().__init__(pair, stream, other)
        self._tap = tap

    def filled(self, count: int) -> None:
        self._tap(self._space[:count])
        super().filled(count)

    def on_data(self, data: memoryview) -> None:
        self._tap(data)
        super().on_data(data)


class _Pair:
    __slots__ = ("_done", "_on_done", "_on_end", "ends")

    def __init__(self, on_done: Callable[[str], None] | None, on_end: Callable[[Stream], None] | None) -> None:
        self._on_done = on_done
        self._on_end = on_end
        self._done = False
        self.ends: tuple[_End, ...] = ()

    def end(self, stream: Stream) -> None:
        if self._on_end is not None:
            self._on_end(stream)
        if all(end.ended for end in self.ends):
            self.finish("")

    def finish(self, why: str) -> None:
        if not self._done:
            self._done = True
            if self._on_done is not None:
                self._on_done(why)


def join(
    one: Stream,
    other: Stream,
    on_done: Callable[[str], None] | None = None,
    tap: Callable[[memoryview], None] | None = None,
    on_end: Callable[[Stream], None] | None = None,
) -> None:
    """Join two streams until both directions have ended or one stream is aborted; then the other is, too.

    ``on_done(why)`` is called once: with "" when each end has said its end of data (what is on its way is still sent),
    else with the reason of the abort. ``tap`` is shown what comes from ``one``.
    ``on_end(stream)`` is called when a stream has said its end of data, after that was passed on.
    """
    pair = _Pair(on_done, on_end)
    first = _End(pair, one, other) if tap is None else _TappedEnd(pair, one, other, tap)
    pair.ends = (first, _End(pair, other, one))
    one.handler, other.handler = pair.ends
    # Either may have been held back by the handler that it had before.
    one.resume()
    other.resume()
