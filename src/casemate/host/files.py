"""Files: replaced whole or not at all, copied without their holes, opened only below a directory, removed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h
_SYS_OPENAT2 = 437
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # fcntl.h, linux/fs.h
_RESOLVE_BENEATH_NO_LINKS = 0x08 | 0x04 | 0x02  # linux/openat2.h: BENEATH, NO_SYMLINKS, NO_MAGICLINKS
_CHUNK = 64 << 20


def fsync_dir(path: Path) -> None:
    """Make what happened to the names in a directory survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the content of a file survive a power failure, whoever wrote it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def new_name(path: Path) -> Iterator[Path]:
    """A fresh name beside ``path``; at the end of the block the file there becomes ``path``, durably.

    When the block fails the file is removed and ``path`` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        yield temporary
        fsync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def remove_unnamed(directory: Path) -> None:
    """Remove what processes that were killed had begun by ``new_name`` there; for a directory with one writer."""
    for path in directory.glob(".*.new") if directory.is_dir() else []:
        path.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Give a file new content: readers see the old or the new, whole, whatever happens meanwhile."""
    with new_name(path) as temporary:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)


def name_it(temporary: Path, path: Path) -> None:
    """Give a file its name beside it, durably. FileExistsError when there is something of that name, which stays."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        if number != errno.EINVAL:
            raise OSError(number, os.strerror(number), os.fspath(path))
        os.link(temporary, path)  # NFS, for one, knows links and not that flag; FAT of a memory stick has no links
        temporary.unlink()
    fsync_dir(path.parent)


def copy_file(source: Path, target: Path, mode: int = 0o600, durable: bool = True) -> None:
    """Copy a file to a new name: shared blocks where the file system can (reflink), else data without its holes.

    ``durable``: it is on the disk when this returns.
    """
    with open(source, "rb") as from_file:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            try:
                fcntl.ioctl(fd, _FICLONE, from_file.fileno())
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM):
                    raise
                copy_data(from_file.fileno(), fd)
            if durable:
                os.fsync(fd)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


def copy_data(source: int, target: int) -> None:
    """Make an empty file a copy of another, with holes where that has holes; both are open descriptors."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        at = start
        while at < end:
            at += _copy_some(source, target, at, min(_CHUNK, end - at))


def _copy_some(source: int, target: int, at: int, count: int) -> int:
    try:
        done = os.copy_file_range(source, target, count, at, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        done = os.pwrite(target, os.pread(source, min(count, 1 << 20), at), at)
    if done == 0:
        raise OSError(errno.EIO, "file became shorter while it was copied")
    return done


def contained_open(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path below an open directory; no ``..``, symbolic link or mount trick leads out of it (openat2(2))."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_BENEATH_NO_LINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(how, len(how))
    fd = libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), buffer, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory with all below it, or a file; symbolic links are removed, never followed. Absent is fine."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Room on the file system of ``path`` for us."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def room(path: Path) -> tuple[int, int] | None:
    """Size and used bytes of the file system of ``path``; None where there is no such file."""
    try:
        status = os.statvfs(path)
    except FileNotFoundError:
        return None
    return status.f_blocks * status.f_frsize, (status.f_blocks - status.f_bfree) * status.f_frsize
