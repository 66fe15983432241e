"""Directories of a copy, however deep: opened one below the other, walked through, removed. Few are open at a time.

A name in a stream may have thousands of components. A program may have a thousand open files, the kernel takes paths of
4096 bytes, and Python calls itself a thousand times, so nothing here opens a whole path, keeps a descriptor for each
level, or is recursive.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPEN = 16
"""Descriptors of directories that a copy keeps open: the one in use and its next ancestors."""
BATCH = 1000
"""Entries of a directory that are read at once where it may have any number of them."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags that open a directory and never follow a link to one."""


class Cursor:
    """Opens directories below ``top``, an open descriptor that stays its owner's to close.

    Only the OPEN deepest directories of the present path are open. Going up beyond them means to open the path again
    from ``top``, never ``..``: a directory that was moved away meanwhile would lead somewhere else.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._path: list[bytes] = []
        self._fds: deque[int] = deque()

    def enter(self, parts: Sequence[bytes]) -> int:
        """The descriptor of a directory, valid until the next call; OSError where it cannot be opened."""
        common = 0
        most = min(len(parts), len(self._path))
        while common < most and parts[common] == self._path[common]:
            common += 1
        self.leave(common)
        if not self._fds:
            del self._path[:]
        for part in parts[len(self._path) :]:
            self._fds.append(os.open(part, DIRECTORY, dir_fd=self._fds[-1] if self._fds else self._top))
            self._path.append(part)
            if len(self._fds) > OPEN:
                os.close(self._fds.popleft())
        return self._fds[-1] if self._fds else self._top

    def leave(self, depth: int) -> None:
        """Close what is deeper than so many components."""
        while len(self._path) > depth:
            self._path.pop()
            if self._fds:
                os.close(self._fds.pop())

    def close(self) -> None:
        """Close everything."""
        self.leave(0)


class Found:
    """An object of a tree: ``entry`` in the open ``directory``, ``name`` from the top. ``end`` says that all that is in
    a directory was found."""

    __slots__ = ("directory", "end", "entry", "kind", "name")

    def __init__(self, directory: int, entry: bytes, name: bytes, kind: int, end: bool = False) -> None:
        self.directory = directory
        self.entry = entry
        self.name = name
        self.kind = kind
        self.end = end


def walk(path: str) -> Iterator[Found]:
    """A file or a whole tree, in the order of a stream: a directory comes before what is in it, and again after that.

    ``kind`` is the type in the sense of stat (``S_IFREG`` ...), 0 for what is neither file, directory nor link. Links
    are not followed, but those in the path itself are. OSError with the whole name where something cannot be read.
    """
    whole = os.path.abspath(path)
    top = os.fsencode(os.path.basename(whole))
    parent = os.open(os.path.dirname(whole), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    cursor = Cursor(parent)
    name = top
    try:
        kind = stat.S_IFMT(os.lstat(top, dir_fd=parent).st_mode)
        yield Found(parent, top, top, kind if kind in _KINDS else 0)
        levels: list[tuple[bytes, Iterator[tuple[bytes, int]]]] = []
        if kind == stat.S_IFDIR:
            levels.append((top, _entries(cursor.enter([top]))))
        while levels:
            inside, entries = levels[-1]
            directory = cursor.enter(inside.split(b"/"))
            for entry, kind in entries:
                name = inside + b"/" + entry
                yield Found(directory, entry, name, kind)
                if kind == stat.S_IFDIR:
                    levels.append((name, _entries(cursor.enter(name.split(b"/")))))
                    break
            else:
                levels.pop()
                above, _slash, entry = inside.rpartition(b"/")
                yield Found(cursor.enter(above.split(b"/") if above else ()), entry, inside, stat.S_IFDIR, True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(name)) from error
    finally:
        cursor.close()
        os.close(parent)


_KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK))


def _entries(directory: int) -> Iterator[tuple[bytes, int]]:
    """Name and kind of what is in a directory, sorted. The kind comes with the name: no lstat for each of the many."""
    with os.scandir(directory) as found:
        return iter(sorted((os.fsencode(entry.name), _kind(entry)) for entry in found))


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFLNK if entry.is_symlink() else 0


def batch(directory: int) -> list[bytes]:
    """Some of the entries of a directory, empty when there are none: for who removes what it gets."""
    with os.scandir(directory) as found:
        return [os.fsencode(entry.name) for entry in itertools.islice(found, BATCH)]


def remove_tree(parent: int, name: bytes) -> None:
    """Remove a directory of our own with all below, whatever its modes are; what is gone already is fine.

    A directory within it is first moved to the top, so that depth costs nothing. For a tree of somebody else's that
    would be wrong: where removing fails half-way, its parts are not where they were.
    """
    try:
        top = _open_up(parent, name)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return
    try:
        while found := batch(top):
            for entry in found:
                if _unlinked(top, entry):
                    continue
                inner = _open_up(top, entry)
                try:
                    while below := batch(inner):
                        for one in below:
                            if not _unlinked(inner, one):
                                os.close(_open_up(inner, one))  # a directory that may not be written cannot be moved
                                os.rename(
                                    one, b".moved-" + os.urandom(8).hex().encode(), src_dir_fd=inner, dst_dir_fd=top
                                )
                finally:
                    os.close(inner)
                os.rmdir(entry, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _unlinked(directory: int, name: bytes) -> bool:
    """Remove what is no directory; False for a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        return False
    return True


def _open_up(parent: int, name: bytes) -> int:
    """Open a directory and give its owner all rights to it."""
    try:
        fd = os.open(name, DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, "a link", os.fsdecode(name)) from error
        if error.errno != errno.EACCES or not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            raise
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, DIRECTORY, dir_fd=parent)
    os.fchmod(fd, 0o700)
    return fd
