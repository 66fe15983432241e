"""mount(2), which Python has no call for."""

from __future__ import annotations

import os

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_BIND = 1, 2, 4, 8, 1024, 4096  # linux/mount.h


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount something; OSError."""
    import ctypes  # of use here only: each module costs an emulated guest time at its start

    libc = ctypes.CDLL(None, use_errno=True)
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    if libc.mount(*texts, flags, None if options is None else options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{source}: {os.strerror(number)}")
