"""Landlock: which files a process may open, make and remove from now on, as far as the kernel can be told.

Numbers are those of linux/landlock.h; the system calls have the same numbers on all architectures. What it does not
cover: connecting to a socket that has a path (the socket's own mode decides), and descriptors that are open already.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
REMOVE_FILE, MAKE_SOCKET = 1 << 5, 1 << 9
DEVICE_CONTROL = 1 << 15
"""ioctl(2) on devices; where the kernel does not know it (before version 5) it is always allowed."""
_FILE_RIGHTS = 1 << 0 | WRITE_FILE | READ_FILE | 1 << 14 | DEVICE_CONTROL

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_QUERY_VERSION, _PATH_BENEATH = 1, 1
_RIGHTS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the rights, from bit 0, a version knows; newer ones know those of the last."""
_TCP = 1 << 0 | 1 << 1
"""Since version 4: bind and connect of TCP, which nothing is allowed."""
_SCOPES = 1 << 0 | 1 << 1
"""Since version 6: no abstract sockets and no signals of other processes."""


def version() -> int:
    """The version that the kernel has, 0 where it has none or Landlock was not chosen at boot."""
    found = ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, _QUERY_VERSION)
    return max(0, int(found))


def restrict(allowed: Mapping[str, int]) -> int:
    """Allow ``{path: rights}`` and nothing else, for ever; returns the version that does it, 0 for none.

    Rights at a directory count for all below it. A path that does not exist, or cannot be
    reached, is left out. The caller has given up new
    privileges before. OSError where the kernel has Landlock and refuses.
    """
    known = version()
    if not known:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    handled = (1 << _RIGHTS_OF_VERSION.get(known, 16)) - 1
    # struct landlock_ruleset_attr grew with the versions: the kernel refuses fields that it does not know.
    fields = [handled, *([_TCP] if known >= 4 else []), *([_SCOPES] if known >= 6 else [])]
    attributes = struct.pack(f"@{len(fields)}Q", *fields)
    ruleset = _call(libc, _CREATE, attributes, len(attributes), 0)
    try:
        for path, rights in allowed.items():
            _allow(libc, ruleset, path, rights & handled)
        _call(libc, _RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return known


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # a directory that the process cannot enter anyway
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        # struct landlock_path_beneath_attr is packed: 12 bytes.
        _call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _call(libc: ctypes.CDLL, number: int, *arguments: int | bytes) -> int:
    found = int(libc.syscall(number, *arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock({number}): {os.strerror(code)}")
    return found
