"""Colours of text on a terminal: never elsewhere, and not where ``NO_COLOR`` is set (no-color.org) or TERM is dumb."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

CODES = {
    "bad": "1;31", "good": "32", "warn": "33", "faint": "2",
    "red": "31", "orange": "33", "yellow": "93", "green": "32", "gray": "90", "blue": "34", "purple": "35",
}  # fmt: skip
"""Graphic renditions of ECMA-48 by what they stand for; those of labels by the labels' names."""


def wanted(stream: TextIO | None) -> bool:
    """Whether text for this stream may have colours."""
    if stream is None or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


def paint(text: str, what: str) -> str:
    """Text in the colour of what it stands for; as it is where there is none for that."""
    code = CODES.get(what)
    return f"\033[{code}m{text}\033[0m" if code else text
