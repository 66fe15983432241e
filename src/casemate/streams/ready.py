"""Waits until one of a few descriptors can be read, whatever their numbers are."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol, TypeVar

    class _HasFileno(Protocol):
        def fileno(self) -> int: ...

    File = TypeVar("File", bound="int | _HasFileno")


def readable(files: Iterable[File], seconds: float | None = None) -> list[File]:
    """Those that can be read, are at their end or have failed; empty when none is after ``seconds`` (None: no limit).

    ``select.select`` cannot do this: it fails for descriptors from 1,024 up (select(2)), which a daemon with many
    qubes has.
    """
    poll, by_number = select.poll(), {}
    for file in files:
        number = file if isinstance(file, int) else file.fileno()
        by_number[number] = file
        poll.register(number, select.POLLIN)
    # At least a millisecond where there is time left: poll(2) takes whole ones.
    limit = None if seconds is None else max(0, -int(-seconds * 1000 // 1))
    return [by_number[number] for number, _events in poll.poll(limit)]
