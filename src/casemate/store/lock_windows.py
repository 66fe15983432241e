"""What ``lock.py`` asks of Windows: LockFileEx by ctypes, on one byte of the lock file, never of the data."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

if sys.platform == "win32":
    import ctypes
    import msvcrt
    import os
    from ctypes import wintypes

    _LOCKED_BYTE = 1 << 30
    """Far behind the end of the file: others cannot read a byte that is locked on Windows, and they read the first."""
    _FAIL_IMMEDIATELY, _EXCLUSIVE = 0x1, 0x2
    _ERROR_LOCK_VIOLATION, _ERROR_IO_PENDING = 33, 997

    class _Overlapped(ctypes.Structure):
        """OVERLAPPED: where the locked byte lies."""

        _fields_ = (
            ("Internal", ctypes.c_void_p),
            ("InternalHigh", ctypes.c_void_p),
            ("Offset", wintypes.DWORD),
            ("OffsetHigh", wintypes.DWORD),
            ("hEvent", wintypes.HANDLE),
        )

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _lock = _kernel.LockFileEx
    _lock.restype = wintypes.BOOL
    _lock.argtypes = (
        wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, ctypes.POINTER(_Overlapped),
    )  # fmt: skip
    _unlock = _kernel.UnlockFileEx
    _unlock.restype = wintypes.BOOL
    _unlock.argtypes = (
        wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, ctypes.POINTER(_Overlapped),
    )  # fmt: skip

    def open_file(path: Path) -> int:
        """A lock file, made if need be; not inherited by programs."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT, 0o660)

    def try_lock(fd: int, exclusive: bool) -> bool:
        """Take the lock if it is free; False where another holds it."""
        flags = _FAIL_IMMEDIATELY | (_EXCLUSIVE if exclusive else 0)
        if _lock(msvcrt.get_osfhandle(fd), flags, 0, 1, 0, ctypes.byref(_Overlapped(Offset=_LOCKED_BYTE))):
            return True
        code = ctypes.get_last_error()
        if code in (_ERROR_LOCK_VIOLATION, _ERROR_IO_PENDING):
            return False
        raise ctypes.WinError(code)

    def unlock(fd: int) -> None:
        """Give the lock back."""
        if not _unlock(msvcrt.get_osfhandle(fd), 0, 1, 0, ctypes.byref(_Overlapped(Offset=_LOCKED_BYTE))):
            raise ctypes.WinError(ctypes.get_last_error())

    def is_gone(fd: int) -> bool:
        """Never: Windows does not let a file go that is open without FILE_SHARE_DELETE."""
        return False

    def owners(fds: Iterable[int]) -> list[int]:
        """Nobody: Windows does not tell who holds a lock."""
        return []
