"""Mounts the private disk of a guest that goes on from a warm image, as ``host/initrd/init.c`` does in one that boots.

In the image the disk was another, an empty one that nobody had mounted. The host tells the guest of the new disk's size
by an interrupt, which the kernel handles a moment after the guest goes on.
"""

from __future__ import annotations

import os
import time

from casemate.agent.mounts import MS_BIND, MS_NOATIME, MS_RDONLY, mount
from casemate.wire.link import PRIVATE_LATER, PRIVATE_SIZE_KEY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RW, _HOME = "/rw", "/home"
_SERIAL = "private"
_RESIZE_FS = 0x40086610  # EXT4_IOC_RESIZE_FS, fs/ext4/ext4.h
_GROWN = 256 << 20
"""A disk is larger than its file system by more than this and a sixteenth only if it was enlarged (init.c)."""
_SIZE_SECONDS = 5.0
_LOOK_SECONDS = 0.002


def is_later() -> bool:
    """Whether this guest was booted to mount the disk later."""
    with open("/proc/cmdline", encoding="ascii", errors="replace") as file:
        return PRIVATE_LATER in file.read().split()


def is_mounted() -> bool:
    """Whether something is mounted where the disk belongs."""
    return os.path.ismount(_RW)


def mount_private(read: Callable[[str], bytes | None]) -> None:
    """Mount it, make what belongs on it, let the file system grow; OSError. ``read`` gives the value of a key."""
    if is_mounted():
        # A file system that was mounted in the image would be written over another disk.
        raise OSError("something is mounted at /rw already")
    name = _find()
    _await_size(name, int(read(PRIVATE_SIZE_KEY) or b"0"))
    os.makedirs(_RW, mode=0o755, exist_ok=True)
    writable = _mount_ext4(f"/dev/{name}")
    if writable:
        for directory in (f"{_RW}{_HOME}", f"{_RW}/config"):
            os.makedirs(directory, mode=0o755, exist_ok=True)
        home = f"{_RW}{_HOME}/user"
        if not os.path.isdir(home):
            os.mkdir(home, 0o700)
            os.chown(home, 1000, 1000)
    mount(f"{_RW}{_HOME}", _HOME, None, MS_BIND)
    if writable:
        _grow(name)


def _find() -> str:
    for name in sorted(os.listdir("/sys/block")):
        try:
            with open(f"/sys/block/{name}/serial", encoding="ascii") as file:
                if file.read().strip() == _SERIAL:
                    return name
        except OSError:
            continue  # a device that has no serial
    raise OSError("there is no private disk")


def _size(name: str) -> int:
    with open(f"/sys/block/{name}/size", encoding="ascii") as file:
        return int(file.read()) * 512


def _await_size(name: str, expected: int) -> None:
    end = time.monotonic() + _SIZE_SECONDS
    while expected and _size(name) != expected and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)


def _mount_ext4(node: str) -> bool:
    """Whether it can be written."""
    try:
        mount(node, _RW, "ext4", MS_NOATIME, "noinit_itable")
    except PermissionError:
        pass  # the disk is read-only
    except OSError as error:
        if error.errno != 30:  # EROFS
            raise
    else:
        return True
    mount(node, _RW, "ext4", MS_NOATIME | MS_RDONLY, "noinit_itable")
    return False


def _grow(name: str) -> None:
    import fcntl
    import struct
    import sys

    found = os.statvfs(_RW)
    size, used = _size(name), found.f_blocks * found.f_frsize
    if size <= used + used // 16 + _GROWN:
        return
    fd = os.open(_RW, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RESIZE_FS, struct.pack("Q", size // found.f_frsize))
    except OSError as error:
        sys.stderr.write(f"casemate-agent: {_RW} does not grow: {error}\n")
    finally:
        os.close(fd)
