"""Says whether something in the directories of the policy has changed, by inotify(7); never waits."""

from __future__ import annotations

import ctypes
import os

_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_MASK = (
    _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
)  # fmt: skip


class DirectoryWatch:
    """One descriptor for any number of directories; readable when anything in them has changed."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._watches: dict[str, int] = {}
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def fileno(self) -> int:
        """The descriptor, for whoever wants to hear of changes at once."""
        return self._fd

    def add(self, directory: str) -> bool:
        """Watch a directory. If it does not exist, watch the nearest parent in which it could appear.

        False when the kernel has no more watches for this user (fs.inotify.max_user_watches).
        """
        for _ in range(64):
            if self._add(directory):
                return True
            if ctypes.get_errno() not in (2, 20, 13):  # ENOENT, ENOTDIR, EACCES
                return False
            parent = directory
            while parent not in ("/", ""):
                parent = os.path.dirname(parent)  # noqa: PTH120
                if self._add(parent):
                    break
            if not os.path.isdir(directory):  # noqa: PTH112
                return True
        return False

    def _add(self, directory: str) -> bool:
        found = self._libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK)
        if found >= 0:
            self._watches[directory] = found
        return bool(found >= 0)

    def changed(self) -> bool:
        """Read all events so far; whether there were any."""
        found = False
        while True:
            try:
                if not os.read(self._fd, 65536):
                    return True
                found = True
            except BlockingIOError:
                return found

    def only(self, directories: set[str]) -> None:
        """Drop all watches except those on these directories and on parents that are watched in place of one."""
        for directory in list(self._watches):
            if not any(wanted == directory or wanted.startswith(directory + "/") for wanted in directories):
                self._libc.inotify_rm_watch(self._fd, self._watches.pop(directory))

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()
