"""What this host can start: checked when a property is set, and again at each start, with the same words.

A collection may come from another host, and a host may lose memory or a kernel, so a start cannot rely on what was
checked when a value was set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from casemate.wire.errors import printable

LEAST_MEMORY = 80
"""MiB. With 64 a lean guest of Debian 12 panics while its kernel starts; with 80 it answers."""

MOST_VCPUS = 128
"""Virtual processors. Each is a thread of QEMU, whose user may have 256 (``max_processes`` in host/libvirt_embed.py);
the rest is for disks, which use up to 64 each."""


class Possible:
    """Knows what the host has; makes no change. ``kernels`` is the directory of kernels, one directory each."""

    def __init__(self, kernels: Path) -> None:
        self._kernels = kernels

    def kernels(self) -> list[str]:
        """Names of the kernels that qubes can boot, sorted."""
        return sorted(path.name for path in self._kernels.glob("*") if (path / "vmlinuz").is_file())

    def refusal(self, name: str, text: str) -> str:
        """Why no qube could start with ``text`` as property ``name``; empty where one could, or where it is not known
        yet (text that is no value of the property at all, which the property itself refuses)."""
        check = self._CHECKS.get(name)
        return check(self, text) if check is not None else ""

    def _memory(self, text: str) -> str:
        here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        if not _is_number(text):
            return ""
        if int(text) < LEAST_MEMORY:
            return f"{text} MiB of memory are too little for a qube: it needs {LEAST_MEMORY}"
        return f"this host has {here} MiB of memory, so no qube can have {text}" if int(text) > here else ""

    def _vcpus(self, text: str) -> str:
        return f"a qube can have {MOST_VCPUS} processors at most" if _is_number(text) and int(text) > MOST_VCPUS else ""

    def _kernel(self, text: str) -> str:
        there = self.kernels()
        if text in there:
            return ""
        said = f"there are {', '.join(there)}" if there else "there is none yet: casemate template build makes one"
        if not text:
            return f"a qube boots a kernel of this host, so it must have one; {said}"
        return f"no such kernel: {printable(text, 80)!r}; {said}"

    _CHECKS: Mapping[str, Callable[[Possible, str], str]] = {
        "memory": _memory,
        "vcpus": _vcpus,
        "kernel": _kernel,
        "default_kernel": _kernel,
    }
    """Properties with values that a start depends on, of qubes and of the system."""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
