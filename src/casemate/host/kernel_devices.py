"""The kernel's own description of the host's devices: files below /sys, /proc and /dev, read each time anew."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from casemate.wire.errors import DeviceBusyError, DeviceNotFoundError, HypervisorError, printable


class KernelDevices:
    """Reads /sys, /proc and /dev, or what stands for them. Files that are not there are empty: devices come and go."""

    def __init__(self, sys: Path = Path("/sys"), proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> None:
        self.sys = sys
        self._proc = proc
        self._dev = dev

    def block_node(self, name: str) -> Path:
        """The node of a block device, checked to be that device and free. Needs root.

        The name comes from the kernel's list, never from a caller. Whether the host uses the device is asked of the
        kernel itself: opening it exclusively fails while it is mounted, swapped to or part of something.
        """
        path = self.path(name)
        numbers = self.text(self.sys / "class/block" / name, "dev")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DeviceNotFoundError(f"{path} has gone") from None
        except PermissionError:
            raise HypervisorError(f"{path} may not be opened: only root can give devices to qubes") from None
        except OSError as error:
            raise DeviceBusyError(f"{path} is in use by this host: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISBLK(status.st_mode) or f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" != numbers:
                raise HypervisorError(f"{path} is not the device that the kernel lists under that name")
        finally:
            os.close(fd)
        return path

    def path(self, name: str) -> Path:
        """Where the node of a block device is; nothing is checked."""
        return self._dev / name

    def text(self, directory: Path, name: str) -> str:
        """The content of a small file, without white space around it and without control characters."""
        try:
            return printable((directory / name).read_text("utf-8", "replace").strip(), 200)
        except OSError:
            return ""

    def directories(self, path: str) -> Iterator[Path]:
        """What is in a directory below /sys."""
        try:
            yield from (self.sys / path).iterdir()
        except OSError:
            return

    def lines(self, name: str) -> Sequence[str]:
        """The lines of a file below /proc."""
        try:
            return (self._proc / name).read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
