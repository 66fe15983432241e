"""Saves the state of a machine's devices and loads it into another, by commands to QEMU's monitor.

libvirt has no call for it: its own save and restore carry the memory along, which here is a file (guest_memory.py).
The capability ``x-ignore-shared`` leaves that out of QEMU's migration stream (QEMU's docs/devel/migration).
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from casemate.host.guest_memory import DEVICES, STATE
from casemate.wire.errors import HypervisorError, printable

_FD = "casemate-state"
_HEAD = 8
"""Bytes of magic and version."""
_CONFIGURATION = 7
MOST_DEVICES = 64 << 20
"""Limit of forks (bytes): the state of a machine's devices. That of ours takes half a MiB."""
_SECONDS = 60.0
"""Limit for saving or loading; both take some milliseconds, and seconds on a host that is overloaded."""
_LOOK_SECONDS = 0.001


def save_state(domain: Any, directory: Path) -> None:
    """Write the state of a machine that stands still. When this returns QEMU has written its disks out."""
    fd = os.open(directory / STATE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _leave_out_memory(domain)
        _command_with_file(domain, fd, "getfd", fdname=_FD)
        _command(domain, "migrate", uri=f"fd:{_FD}")
        _wait(domain, "saving")
    finally:
        os.close(fd)


def save_devices(domain: Any, directory: Path) -> None:
    """Write the state of the devices of a machine that stands still and goes on later.

    Unlike ``migrate``, this leaves the memory out also where it is mapped private. QEMU writes no section about the
    machine's type then, which a machine that loads the state wants to see, so it is put in here (QEMU's
    migration/savevm.c: after magic and version, a byte 7, the length of the type's name and the name).
    """
    kind = str(_command(domain, "qom-get", path="/machine", property="type")).removesuffix("-machine").encode()
    with open(os.memfd_create("casemate-devices", os.MFD_CLOEXEC), "r+b") as written:
        # QEMU takes a descriptor of a set only where it is open for just what QEMU wants to do with it.
        fd = os.open(f"/proc/self/fd/{written.fileno()}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            added = _command_with_file(domain, fd, "add-fd", opaque=_FD)
            try:
                name = f"/dev/fdset/{added['fdset-id']}"
                _command(domain, "xen-save-devices-state", filename=name, live=True)
            finally:
                _command(domain, "remove-fd", **{"fdset-id": added["fdset-id"]})
        finally:
            os.close(fd)
        data = written.read(MOST_DEVICES + 1)
    if not _HEAD < len(data) <= MOST_DEVICES:  # a guest that has taken its QEMU over may write what it likes
        raise HypervisorError(
            f"The devices of {domain.name()} cannot be saved: their state has {len(data)} bytes or more"
        )
    with open(directory / DEVICES, "xb") as file:
        file.write(data[:_HEAD] + struct.pack(">BI", _CONFIGURATION, len(kind)) + kind + data[_HEAD:])


def load_state(domain: Any, directory: Path) -> None:
    """Bring a machine that was started with ``-incoming defer`` to where the image was saved; it stands still."""
    devices = directory / DEVICES
    saved_alone = devices.exists()
    fd = os.open(devices if saved_alone else directory / STATE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not saved_alone:
            _leave_out_memory(domain)  # both ends must say so; the state of devices alone says nothing about memory
        _command_with_file(domain, fd, "getfd", fdname=_FD)
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


def _leave_out_memory(domain: Any) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    _command(domain, "migrate-set-capabilities", capabilities=[capability])


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


def _command(domain: Any, execute: str, **arguments: object) -> Any:
    request = json.dumps({"execute": execute, "arguments": arguments})
    return _answer(libvirt_qemu.qemuMonitorCommand(domain, request, 0))


def _command_with_file(domain: Any, fd: int, execute: str, **arguments: object) -> Any:
    request = json.dumps({"execute": execute, "arguments": arguments})
    return _answer(libvirt_qemu.qemuMonitorCommandWithFiles(domain, request, [fd], 0)[0])


def _answer(text: str) -> Any:
    told = json.loads(text)
    if "error" in told:
        raise HypervisorError(f"QEMU refused: {printable(str(told['error'].get('desc')), 200)}")
    return told["return"]
