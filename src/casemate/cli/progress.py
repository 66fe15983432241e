"""How far something is, on a terminal only: share, rate, time left; or for how long it has been waited for."""

from __future__ import annotations

import sys
import time

from casemate.wire.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Event, Thread
    from typing import Protocol

    class Bar(Protocol):
        """What is used of a bar."""

        def update(self, count: float, /) -> object: ...
        def set_description_str(self, text: str, /) -> None: ...
        def close(self) -> None: ...


class _Silent:
    def update(self, _count: float, /) -> None:
        pass

    def set_description_str(self, _text: str, /) -> None:
        pass

    def close(self) -> None:
        pass


def bar(total: float, unit: str, quiet: bool = False) -> Bar:
    """A bar on standard error; nothing where that is no terminal. ``unit`` ``B`` is bytes."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        return _Silent()
    from tqdm import tqdm  # type: ignore[import-untyped]  # slow to import, and seldom wanted

    made: Bar = tqdm(total=total, unit=unit, unit_scale=unit == "B", unit_divisor=1024, leave=False)
    return made


_LINE_SECONDS = 1.0


class Lines:
    """A line ``progress SHARE`` on standard error, in percent and at most one a second, for a program that reads it.

    A reader that has gone is a BrokenPipeError at the next line, so that no work goes on for nobody.
    """

    def __init__(self, total: float) -> None:
        self._total = max(1.0, total)
        self._done = 0.0
        self._then = 0.0

    def update(self, count: float, /) -> None:
        """So much more of the total is done."""
        self._done += count
        now = time.monotonic()
        if now - self._then < _LINE_SECONDS:
            return
        self._then = now
        sys.stderr.write(f"progress {min(100.0, 100 * self._done / self._total):.1f}\n")
        sys.stderr.flush()

    def set_description_str(self, _text: str, /) -> None:
        """Nobody reads it."""

    def close(self) -> None:
        """Nothing is left to be told."""


QUIET_SECONDS = 1.0
"""Seconds before anything is shown: what is over sooner needs no progress."""
_STEP = 0.5


class Waiting:
    """Shows on a terminal what is waited for and how long already, while a block runs: ``starting work: 4 s``.

    For what the daemon does in one call, of which nobody knows how far it is. The line is wiped before the block ends,
    so that results and errors stand at its beginning. Nothing is shown where standard error is no terminal.
    """

    def __init__(self, text: str, quiet: bool = False) -> None:
        self._text = printable(text, 60)
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._thread: Thread | None = None
        self._over: Event | None = None

    def __enter__(self) -> None:
        if not self._shown:
            return
        import threading  # here: without a terminal it is not needed

        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, args=(self._over,), daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._over is not None and self._thread is not None:
            self._over.set()
            self._thread.join()

    def _show(self, over: Event) -> None:
        begun, width = time.monotonic(), 0
        delay = QUIET_SECONDS
        while not over.wait(delay):
            line = f"{self._text}: {time.monotonic() - begun:.0f} s"
            width = len(line)
            sys.stderr.write(f"\r{line}")
            sys.stderr.flush()
            delay = _STEP
        if width:
            sys.stderr.write(f"\r{' ' * width}\r")
            sys.stderr.flush()
