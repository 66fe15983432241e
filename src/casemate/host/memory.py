"""How much memory this host has left."""

from __future__ import annotations

import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """MiB that programs could have without swapping: MemAvailable of proc_meminfo(5)."""
    found = re.search(r"^MemAvailable: +([0-9]+) kB$", MEMINFO.read_text("ascii"), re.M)
    return int(found[1]) >> 10 if found else 0
