"""Sizes for a person to read."""

from __future__ import annotations


def readable(count: int) -> str:
    """Bytes, in the largest unit of which there is at least one."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} B"
