"""The steps of building a template, and by which words of mmdebstrap one is known to have ended.

How far a build is can be told truly only by what has ended: how long a step takes depends on mirror, disk and packages.
"""

from __future__ import annotations

from typing import Protocol

LISTS, DOWNLOAD, EXTRACTION, ESSENTIAL, REMAINING = (
    "package lists", "download", "extraction", "essential packages", "remaining packages",
)  # fmt: skip
IMAGE, AGENT, KERNEL, TEMPLATE = "image", "agent", "kernel", "template"
STEPS = (LISTS, DOWNLOAD, EXTRACTION, ESSENTIAL, REMAINING, IMAGE, AGENT, KERNEL, TEMPLATE)
"""All of them, in their order. One that has ended means that those before it have. ``template`` is the qube itself,
or the new image in it; what comes before it leaves nothing but entries of the cache."""

_BEGINS = (
    ("I: downloading packages", LISTS),
    ("I: extracting archives", DOWNLOAD),
    ("I: installing essential packages", EXTRACTION),
    ("I: installing remaining packages", ESSENTIAL),
    ("I: running --customize-hook", REMAINING),
)
"""With which line of mmdebstrap (1.3 to 1.5) the next step begins, and which step has then ended."""


class BuildReport(Protocol):
    """Hears how a build goes on."""

    def line(self, text: str) -> None:
        """A line of the log. Programs from a mirror wrote parts of it."""

    def ended(self, step: str) -> None:
        """One of STEPS has ended."""


def ended_at(line: str) -> str | None:
    """The step that has ended when mmdebstrap says this; None for any other line."""
    return next((step for words, step in _BEGINS if line.startswith(words)), None)
