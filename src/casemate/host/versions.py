"""Which system, kernel, QEMU and libvirt this host has, and what is known of that combination."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from casemate.host.acceleration import QEMU
from casemate.host.process import Runner
from casemate.wire import os_release
from casemate.wire.errors import ToolError

KNOWN: dict[tuple[str, str], str] = {
    ("7.2", "9.0"): "Debian 12's; the whole test suite passes on it, emulated",
    ("10.0", "11.3"): "Debian 13's; the whole test suite passes on it, emulated",
}
"""What was tried: major and minor versions of QEMU and libvirt, and what came of it."""

_VERSION = re.compile(rb"(\d+)\.(\d+)(\.\d+)*")


@dataclass(frozen=True, slots=True)
class Versions:
    """Texts to show; ``unknown`` where a program is missing or does not tell."""

    system: str
    kernel: str
    qemu: str
    libvirt: str

    @property
    def known(self) -> str:
        """What is known of this QEMU with this libvirt."""
        found = KNOWN.get((_minor(self.qemu), _minor(self.libvirt)))
        tried = ", ".join(f"QEMU {qemu} with libvirt {libvirt}" for qemu, libvirt in KNOWN)
        return found or f"not tried by anybody yet; tried are {tried}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def system_name(path: Path = Path("/etc/os-release")) -> str:
    """The host's system as it calls itself, such as ``Debian GNU/Linux 13 (trixie)``."""
    try:
        fields = os_release.parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return "unknown"
    return fields.get("PRETTY_NAME") or fields.get("NAME") or "unknown"


async def versions(runner: Runner) -> Versions:
    """Ask the programs."""
    return Versions(system_name(), os.uname().release, await _version(runner, QEMU), await _version(runner, "libvirtd"))


async def _version(runner: Runner, program: str) -> str:
    try:
        said = (await runner.run([program, "--version"], timeout=20)).stdout
    except ToolError:
        return "unknown"
    found = _VERSION.search(said)
    return found[0].decode("ascii") if found else "unknown"
