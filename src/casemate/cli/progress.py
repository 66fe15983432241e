"""How far something is, on a terminal only: share, rate, time left."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
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
