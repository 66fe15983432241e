"""A file of this host as a block device, for as long as somebody uses it (loop(4)).

The device is set up to free itself when its last user closes it: this process holds it until a qube has it, then the
qube's machine does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from types import TracebackType

from casemate.wire.errors import CasemateError

_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A  # linux/loop.h
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO = struct.Struct("=56x64s112x")
"""struct loop_info64: what matters here is the name that the device shows, and the flags at 52."""
_FLAGS_AT, _NAME_BYTES = 52, 63
_TRIES = 20
_CONTROL = "/dev/loop-control"


def check_possible() -> None:
    """CasemateError where this user cannot make a loop device: sooner than by trying."""
    if not os.access(_CONTROL, os.R_OK | os.W_OK):
        raise CasemateError(f"This needs a loop device, and {_CONTROL} is root's")


class LoopDevice:
    """``with LoopDevice(path) as name``: the device exists in the block, and after it while a qube has it."""

    def __init__(self, path: str, readonly: bool = False) -> None:
        self._path = path
        self._readonly = readonly
        self._fd = -1

    def __enter__(self) -> str:
        """The name of the device, such as ``loop0``."""
        try:
            file = os.open(self._path, os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if self._readonly else os.O_RDWR))
        except OSError as error:
            raise CasemateError(f"{self._path}: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CasemateError(f"{self._path} is not a file")
            return self._bind(file)
        except OSError as error:
            hint = "; only root can make one" if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise CasemateError(f"Cannot make a loop device for {self._path}: {error.strerror}{hint}") from None
        finally:
            os.close(file)

    def _bind(self, file: int) -> str:
        for _try in range(_TRIES):
            control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
            try:
                number = fcntl.ioctl(control, _GET_FREE)
            finally:
                os.close(control)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, self._configuration(file))
            except OSError as error:
                os.close(device)
                if error.errno == errno.EBUSY:  # somebody else took it meanwhile
                    continue
                raise
            self._fd = device
            return f"loop{number}"
        raise CasemateError(f"Cannot make a loop device for {self._path}: none is free")

    def _configuration(self, file: int) -> bytes:
        """struct loop_config: the file, a block size of the kernel's choice, loop_info64 and eight reserved words."""
        info = bytearray(_INFO.pack(os.fsencode(os.path.realpath(self._path))[:_NAME_BYTES]))
        struct.pack_into("=I", info, _FLAGS_AT, _AUTOCLEAR | (_READ_ONLY if self._readonly else 0))
        return struct.pack("=II", file, 0) + bytes(info) + bytes(64)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
