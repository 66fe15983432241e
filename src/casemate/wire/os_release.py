"""The file os-release(5): what a Linux system says it is. Pure: text in, fields out."""

from __future__ import annotations


def parse(text: str) -> dict[str, str]:
    """The fields of the file, quotes taken off. A line that is no assignment is left out, as os-release(5) asks."""
    fields = {}
    for line in text.splitlines():
        key, found, value = line.strip().partition("=")
        if found and key and not key.startswith("#"):
            fields[key] = value.strip("\"'")
    return fields
