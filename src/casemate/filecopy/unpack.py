"""Unpacks a stream of files into a directory. Nothing is visible until all is there.

Everything is unpacked into a hidden directory of our own, each step relative to an open directory and without
following links; at the end each top name is moved to its place unless something is there already.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time
import zlib

from casemate.filecopy.directories import DIRECTORY, Cursor, batch, remove_tree
from casemate.filecopy.limits import Limits
from casemate.wire import qfile
from casemate.wire.errors import CasemateError
from casemate.wire.qfile import FileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_SECONDS = 60.0
"""Limit of file copy (seconds): receiver: time without data."""
SPARE = 16 * 1024**2
"""Limit of file copy (bytes): room that stays free on the receiver's disk."""
SPARE_INODES = 1024
"""Limit of file copy: inodes that stay free on the receiver's disk, where it has a fixed number."""
CHECK_BYTES, CHECK_FILES = 16 * 1024**2, 256
"""Bytes and objects after which the room on the disk is looked at again."""
_BLOCK = 4096
"""Bytes that an object takes besides its content: a block for its end, or for a directory's or link's own."""
WAIT_SECONDS = 3600.0
"""How long room is waited for, where that was asked for."""
BUFFER = 256 * 1024
_STAGE = ".incoming-"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Input:
    """The stream: bytes taken from it are in the checksum; a sender that stops is not waited for."""

    def __init__(self, fd: int, idle: float) -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(BUFFER))
        self._at = self._end = 0
        self._summed = 0
        self._sum = 0
        self._idle = idle
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    @property
    def crc(self) -> int:
        """Checksum of the bytes taken so far; brought up to date once a buffer, not for each field."""
        if self._summed < self._at:
            self._sum = zlib.crc32(self._buffer[self._summed : self._at], self._sum)
            self._summed = self._at
        return self._sum

    def some(self, limit: int) -> memoryview:
        """At least one byte, at most ``limit``; valid until the next call."""
        if self._at == self._end:
            self._sum = self.crc
            if not self._poll.poll(self._idle * 1000):
                raise FileError(qfile.EREMOTEIO, f"the sender has sent nothing for {self._idle:g} seconds")
            self._at = self._summed = self._end = 0
            self._end = os.readv(self._fd, [self._buffer])
            if self._end == 0:
                raise FileError(qfile.EREMOTEIO, "the stream ended too early")
        end = min(self._end, self._at + limit)
        piece = self._buffer[self._at : end]
        self._at = end
        return piece

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        data = bytes(self.some(size))
        while len(data) < size:
            data += self.some(size - len(data))
        return data


class Unpacker:
    """Unpacks one stream into the directory ``target``, an open descriptor that stays its owner's to close.

    ``limits`` are what the owner of the receiver has set, by default nothing but a floor of free space and inodes.
    ``files_only`` refuses directories and links, ``all_names`` takes names with any characters. ``on_file`` hears the
    name of each file and link that is complete. ``margin`` (bytes): while less than that would stay free, wait until
    there is more; None: that is an error at once. Its memory does not grow with the number of objects.
    """

    def __init__(
        self,
        fd: int,
        target: int,
        limits: Limits | None = None,
        idle: float = IDLE_SECONDS,
        files_only: bool = False,
        on_file: Callable[[bytes], None] = lambda _name: None,
        margin: int | None = None,
        all_names: bool = False,
    ) -> None:
        self._input = _Input(fd, idle)
        self._target = target
        self._limits = limits if limits is not None else Limits()
        self._files_only = files_only
        self._on_file = on_file
        self._margin = margin
        self._all_names = all_names
        self._bytes = self._files = self._repeats = 0
        self._room = self._inodes = 0
        self._stage_name = ""
        self._stage = -1
        self._granted = 0
        self._cursor = Cursor(-1)
        self._locked: dict[bytes, qfile.FileHeader] = {}
        """Top directories that their owner may not write to: such a one could not be moved to its place."""
        self.last_name = b""
        """Name of the object that was read last, as it came; empty where a header is refused before its name comes."""

    @property
    def crc(self) -> int:
        """Checksum of everything that was taken."""
        return self._input.crc

    def run(self) -> None:
        """Unpack all and publish it; FileError or OSError, and then nothing is left of it."""
        self._sweep()
        self._stage_name = f"{_STAGE}{os.getpid()}-{os.urandom(4).hex()}"
        os.mkdir(self._stage_name, 0o700, dir_fd=self._target)
        try:
            self._stage = os.open(self._stage_name, DIRECTORY, dir_fd=self._target)
            self._cursor = Cursor(self._stage)
            fcntl.flock(self._stage, fcntl.LOCK_EX)
            self._granted = self._probe()
            while (header := self._header()) is not None:
                self._object(header)
            self._cursor.close()
            self._sync()
            self._publish()
        finally:
            self._cursor.close()
            remove_tree(self._target, os.fsencode(self._stage_name))
            if self._stage >= 0:
                os.close(self._stage)

    def _sweep(self) -> None:
        """Remove what an unpacker that was killed has left."""
        for entry in os.listdir(self._target):
            if entry.startswith(_STAGE):
                try:
                    fd = os.open(entry, DIRECTORY, dir_fd=self._target)
                except OSError:
                    continue
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(self._target, os.fsencode(entry))
                except OSError:
                    pass  # another unpacker lives and works in it
                finally:
                    os.close(fd)

    def _probe(self) -> int:
        """The permissions that a new file gets of those asked for: the umask, or a default ACL, takes the others."""
        fd = os.open(b"probe", _NEW, 0o777, dir_fd=self._stage)
        try:
            return os.fstat(fd).st_mode & 0o777
        finally:
            os.close(fd)
            os.unlink(b"probe", dir_fd=self._stage)

    # -- objects

    def _header(self) -> qfile.FileHeader | None:
        raw = self._input.exactly(qfile.HEADER.size)
        try:
            return qfile.parse_header(raw)
        except FileError:
            self.last_name = b""  # or the sender would be told that the object before was refused
            raise

    def _object(self, header: qfile.FileHeader) -> None:
        raw = self._input.exactly(header.name_length)
        # Before the name is looked at: when it is refused, the sender is told of this object, not of the one before.
        self.last_name = raw.partition(b"\0")[0]
        parts = qfile.parse_name(raw, self._all_names)
        if self._files_only and (header.is_dir or header.is_link):
            raise FileError(qfile.EINVAL, "only files are taken")
        self._allow("max-depth", len(parts) - 1)
        parent = self._cursor.enter(parts[:-1])
        if header.is_dir and _is_directory(parts[-1], parent):
            self._finish_directory(parent, parts, header)
            return
        self._account(header, parent)
        if len(parts) == 1:
            self._claim(parts[0], header)
        if header.is_dir:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        elif header.is_link:
            target = self._input.exactly(header.size)
            qfile.check_link(parts, target, self._all_names)
            os.symlink(target, parts[-1], dir_fd=parent)
            os.utime(parts[-1], ns=_times(header), dir_fd=parent, follow_symlinks=False)
        else:
            self._file(parent, parts[-1], header)
        if not header.is_dir:
            self._on_file(self.last_name)

    def _allow(self, name: str, value: int) -> None:
        why = self._limits.exceeded(name, value)
        if why:
            raise FileError(qfile.EDQUOT, why)

    def _account(self, header: qfile.FileHeader, parent: int) -> None:
        self._files += 1
        self._bytes += header.size
        self._allow("max-files", self._files)
        self._allow("max-bytes", self._bytes)
        cost = header.size + _BLOCK
        if cost > self._room or not self._inodes:
            self._look_for_room(parent, cost)
        self._room -= cost
        self._inodes -= 1

    def _claim(self, name: bytes, header: qfile.FileHeader) -> None:
        """A top name must be free where it will be published; that is tried again then."""
        if header.is_link:
            raise FileError(qfile.ENOLINK, "a link must lie in a directory that is sent with it")
        if _exists(name, self._target) or name.startswith(_STAGE.encode()):
            raise FileError(qfile.EEXIST, "exists already")

    def _finish_directory(self, parent: int, parts: list[bytes], header: qfile.FileHeader) -> None:
        """A directory comes again after what is in it, with the mode and the times that it is to have then."""
        self._repeats += 1
        self._allow("max-files", self._repeats)
        if len(parts) == 1 and header.permissions & 0o300 != 0o300:
            self._locked[parts[0]] = header
            return
        if len(parts) == 1:
            self._locked.pop(parts[0], None)
        fd = os.open(parts[-1], DIRECTORY, dir_fd=parent)
        try:
            _finish(fd, header)
        finally:
            os.close(fd)
        self._cursor.leave(len(parts) - 1)

    def _file(self, parent: int, name: bytes, header: qfile.FileHeader) -> None:
        left = header.size
        mode = header.permissions
        fd = os.open(name, _NEW, mode, dir_fd=parent)
        try:
            unchecked = 0
            while left:
                piece = self._input.some(left)
                left -= len(piece)
                unchecked += len(piece)
                if unchecked > CHECK_BYTES:
                    # Room was granted for the whole file, but others write to this disk, too.
                    self._look_for_room(parent, left)
                    unchecked = 0
                while piece:
                    piece = piece[os.write(fd, piece) :]
            if mode & ~self._granted:
                os.fchmod(fd, mode)
            os.utime(fd, ns=_times(header))
        finally:
            os.close(fd)

    def _look_for_room(self, directory: int, size: int) -> None:
        """Grant room for ``size`` bytes and for what comes next, up to the next look; FileError when there is none.

        The look is a system call, so it is made once for CHECK_BYTES and CHECK_FILES, however small the files are.
        """
        floor = SPARE if self._margin is None else self._margin
        end = time.monotonic() + WAIT_SECONDS
        while True:
            space = os.fstatvfs(directory)
            free = space.f_bavail * space.f_frsize - floor
            # File systems that make inodes as they need them (btrfs) say that they have none at all.
            inodes = space.f_favail - SPARE_INODES if space.f_files else CHECK_FILES
            if size <= free and inodes > 0:
                self._room = max(size, min(free, size + CHECK_BYTES))
                self._inodes = min(inodes, CHECK_FILES)
                return
            if self._margin is None or inodes <= 0 or time.monotonic() > end:
                what = f"{floor} bytes" if inodes > 0 else f"{SPARE_INODES} inodes"
                raise FileError(qfile.ENOSPC, f"no space left: {what} stay free on the receiver's disk")
            time.sleep(1)

    # -- the end

    def _sync(self) -> None:
        try:
            import ctypes

            if ctypes.CDLL(None).syncfs(self._stage) == 0:
                return
        except (ImportError, OSError, AttributeError):
            pass
        os.sync()

    def _publish(self) -> None:
        while names := batch(self._stage):
            for name in sorted(names):
                self.last_name = name
                self._publish_one(name)
        os.fsync(self._target)

    def _publish_one(self, name: bytes) -> None:
        if not _is_directory(name, self._stage):
            os.link(name, name, src_dir_fd=self._stage, dst_dir_fd=self._target, follow_symlinks=False)
            os.unlink(name, dir_fd=self._stage)
            return
        os.mkdir(name, 0o700, dir_fd=self._target)  # claims the name, or fails
        os.rename(name, name, src_dir_fd=self._stage, dst_dir_fd=self._target)
        header = self._locked.get(name)
        if header is not None:
            fd = os.open(name, DIRECTORY, dir_fd=self._target)
            try:
                _finish(fd, header)
            finally:
                os.close(fd)


def _times(header: qfile.FileHeader) -> tuple[int, int]:
    return header.atime * 10**9 + header.atime_ns, header.mtime * 10**9 + header.mtime_ns


def _finish(fd: int, header: qfile.FileHeader) -> None:
    os.fchmod(fd, header.permissions)
    os.utime(fd, ns=_times(header))


def _is_directory(name: bytes, parent: int) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode)
    except FileNotFoundError:
        return False


def _exists(name: bytes, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def take(make: Callable[[], Unpacker], say: Callable[[str], None]) -> int:
    """Unpack what comes on stdin with what ``make`` gives, and answer on stdout; the exit status of the receiver.

    There is always a whole result. ``say`` gets a line about what went wrong. The status is the result's code, 0 when
    all was taken.
    """
    unpacker: Unpacker | None = None
    code, why = qfile.OK, ""
    try:
        unpacker = make()
        unpacker.run()
    except FileError as error:
        code, why = error.code, str(error)
    except CasemateError as error:
        code, why = qfile.EINVAL, str(error)
    except OSError as error:
        code, why = error.errno or errno.EIO, error.strerror or "failed"
    if code:
        # First the end of the input, so that a sender that is still writing learns of it; then why.
        os.close(0)
        os.open("/dev/null", os.O_RDONLY)
        name = qfile.shown(unpacker.last_name) if unpacker is not None else ""
        say(f"{name}: {why}" if name else why)
    try:
        crc, last = (unpacker.crc, unpacker.last_name) if unpacker is not None else (0, b"")
        answer = qfile.build_result(code, crc, last)
        while answer:
            answer = answer[os.write(1, answer) :]
    except OSError:
        return code & 255 or 1
    return code & 255 or 1 if code else 0
