"""Saves the state of a machine's devices and loads it into another, by commands to QEMU's monitor.

libvirt has no call for it: its own save and restore carry the memory along, which here is a file (guest_memory.py).
The capability ``x-ignore-shared`` leaves that out of QEMU's migration stream (QEMU's docs/devel/migration).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from casemate.host.guest_memory import STATE
from casemate.wire.errors import HypervisorError, printable

_FD = "casemate-state"
_SECONDS = 60.0
"""Limit for saving or loading; both take some milliseconds, and seconds on a host that is overloaded."""
_LOOK_SECONDS = 0.001


def save_state(domain: Any, directory: Path) -> None:
    """Write the state of a machine that stands still. When this returns QEMU has written its disks out."""
    fd = os.open(directory / STATE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _prepare(domain, fd)
        _command(domain, "migrate", uri=f"fd:{_FD}")
        _wait(domain, "saving")
    finally:
        os.close(fd)


def load_state(domain: Any, directory: Path) -> None:
    """Bring a machine that was started with ``-incoming defer`` to where the image was saved; it stands still."""
    fd = os.open(directory / STATE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _prepare(domain, fd)
        _command(domain, "migrate-incoming", uri=f"fd:{_FD}")
        _wait(domain, "loading")
    finally:
        os.close(fd)


def tell_sizes(domain: Any, targets: Sequence[str]) -> None:
    """Let a guest that goes on look at the sizes of disks again: they are other files than when the image was made.

    QEMU tells a guest of a disk's size when the disk is resized, also when it stays as large as it is.
    """
    for target in targets:
        capacity, _allocated, _physical = domain.blockInfo(target)
        domain.blockResize(target, capacity, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def _prepare(domain: Any, fd: int) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    _command(domain, "migrate-set-capabilities", capabilities=[capability])
    request = json.dumps({"execute": "getfd", "arguments": {"fdname": _FD}})
    _answer(*libvirt_qemu.qemuMonitorCommandWithFiles(domain, request, [fd], 0)[:1])


def _wait(domain: Any, what: str) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        told = _command(domain, "query-migrate")
        if told.get("status") == "completed":
            return
        if told.get("status") in ("failed", "cancelled") or time.monotonic() > end:
            why = printable(str(told.get("error-desc", told.get("status"))), 200)
            raise HypervisorError(f"{what} the state of {domain.name()} failed: {why}")
        time.sleep(_LOOK_SECONDS)


def _command(domain: Any, execute: str, **arguments: object) -> dict[str, Any]:
    request = json.dumps({"execute": execute, "arguments": arguments})
    return _answer(libvirt_qemu.qemuMonitorCommand(domain, request, 0))


def _answer(text: str) -> dict[str, Any]:
    told = json.loads(text)
    if "error" in told:
        raise HypervisorError(f"QEMU refused: {printable(str(told['error'].get('desc')), 200)}")
    found: dict[str, Any] = told["return"]
    return found
