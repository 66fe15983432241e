"""Unpacks a stream of files into a directory. Nothing is visible until all is there.

Everything is unpacked into a hidden directory of our own, each step relative to an open directory and without
following links; at the end each top name is moved to its place unless something is there already.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time
import zlib

from casemate.wire import qfile
from casemate.wire.errors import CasemateError
from casemate.wire.qfile import FileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 4 * 1024**3
"""Limit of file copy (bytes): data in one copy."""
MAX_FILES = 10000
"""Limit of file copy: files in one copy."""
IDLE_SECONDS = 60.0
"""Limit of file copy (seconds): receiver: time without data."""
SPARE = 16 * 1024**2
"""Limit of file copy (bytes): room that stays free on the receiver's disk."""
WAIT_SECONDS = 3600.0
"""How long room is waited for, where that was asked for."""
BUFFER = 256 * 1024
_STAGE = ".incoming-"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
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
    """Unpacks one stream into the directory ``target`` (an open descriptor).

    ``files_only`` refuses directories and links. ``on_file`` hears the name of each file and link that is complete.
    ``margin`` (bytes): while less than that would stay free, wait until there is more; None: that is an error at once.
    """

    def __init__(
        self,
        fd: int,
        target: int,
        max_bytes: int = MAX_BYTES,
        max_files: int = MAX_FILES,
        idle: float = IDLE_SECONDS,
        files_only: bool = False,
        on_file: Callable[[bytes], None] = lambda _name: None,
        margin: int | None = None,
    ) -> None:
        self._input = _Input(fd, idle)
        self._target = target
        self._files_only = files_only
        self._on_file = on_file
        self._margin = margin
        self._bytes_left = max_bytes
        self._files_left = max_files
        self._repeats_left = max_files
        self._stage_name = ""
        self._stage = -1
        self._granted = 0
        self._path: list[bytes] = []
        self._fds: list[int] = []
        self._made: set[bytes] = set()
        self._tops: dict[bytes, qfile.FileHeader] = {}
        self.last_name = b""

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
            self._stage = os.open(self._stage_name, _DIR, dir_fd=self._target)
            fcntl.flock(self._stage, fcntl.LOCK_EX)
            self._granted = self._probe()
            while (header := qfile.parse_header(self._input.exactly(qfile.HEADER.size))) is not None:
                self._object(header)
            self._leave(0)
            self._sync()
            self._publish()
        finally:
            self._leave(0)
            _remove_tree(self._target, os.fsencode(self._stage_name))
            if self._stage >= 0:
                os.close(self._stage)

    def _sweep(self) -> None:
        """Remove what an unpacker that was killed has left."""
        for entry in os.listdir(self._target):
            if entry.startswith(_STAGE):
                try:
                    fd = os.open(entry, _DIR, dir_fd=self._target)
                except OSError:
                    continue
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove_tree(self._target, os.fsencode(entry))
                except OSError:
                    pass
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

    def _object(self, header: qfile.FileHeader) -> None:
        raw = self._input.exactly(header.name_length)
        parts = qfile.parse_name(raw)
        name = raw[:-1]
        self.last_name = name
        if self._files_only and (header.is_dir or header.is_link):
            raise FileError(qfile.EINVAL, "only files are taken")
        repeated = header.is_dir and name in self._made
        self._account(header, repeated)
        parent = self._enter(parts[:-1])
        if len(parts) == 1 and not repeated:
            self._claim(parts[0], header)
        if header.is_dir:
            self._directory(parent, parts, name, header, repeated)
        elif header.is_link:
            target = self._input.exactly(header.size)
            qfile.check_link(parts, target)
            os.symlink(target, parts[-1], dir_fd=parent)
            os.utime(parts[-1], ns=_times(header), dir_fd=parent, follow_symlinks=False)
        else:
            self._file(parent, parts[-1], header)
        if not header.is_dir:
            self._on_file(name)

    def _account(self, header: qfile.FileHeader, repeated: bool) -> None:
        if repeated:
            self._repeats_left -= 1
        else:
            self._files_left -= 1
        if self._files_left < 0 or self._repeats_left < 0 or header.size > self._bytes_left:
            raise FileError(qfile.EDQUOT, "more than is taken")
        self._bytes_left -= header.size

    def _claim(self, name: bytes, header: qfile.FileHeader) -> None:
        """A top name must be free where it will be published; that is tried again then."""
        if header.is_link:
            raise FileError(qfile.ENOLINK, "a link must lie in a directory that is sent with it")
        if name in self._tops or _exists(name, self._target) or name.startswith(_STAGE.encode()):
            raise FileError(qfile.EEXIST, "exists already")
        self._tops[name] = header

    def _directory(
        self, parent: int, parts: list[bytes], name: bytes, header: qfile.FileHeader, repeated: bool
    ) -> None:
        if not repeated:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
            self._made.add(name)
        elif len(parts) > 1:  # a top directory gets its mode in its place: one without "w" could not be moved there
            fd = os.open(parts[-1], _DIR, dir_fd=parent)
            try:
                _finish(fd, header)
            finally:
                os.close(fd)
            self._leave(len(parts) - 1)
        else:
            self._tops[parts[0]] = header

    def _file(self, parent: int, name: bytes, header: qfile.FileHeader) -> None:
        left = header.size
        if left > 1024 * 1024 or self._margin is not None:
            self._make_sure_of_room(parent, left)
        mode = header.permissions
        fd = os.open(name, _NEW, mode, dir_fd=parent)
        try:
            while left:
                piece = self._input.some(left)
                left -= len(piece)
                while piece:
                    piece = piece[os.write(fd, piece) :]
            if mode & ~self._granted:
                os.fchmod(fd, mode)
            os.utime(fd, ns=_times(header))
        finally:
            os.close(fd)

    def _make_sure_of_room(self, directory: int, size: int) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            space = os.fstatvfs(directory)
            if size + (SPARE if self._margin is None else self._margin) <= space.f_bavail * space.f_frsize:
                return
            if self._margin is None or time.monotonic() > end:
                raise FileError(qfile.ENOSPC, "no space left")
            time.sleep(1)

    # -- directories

    def _enter(self, parts: list[bytes]) -> int:
        """Descriptor of the directory, opened step by step from what is open already."""
        common = 0
        while common < min(len(parts), len(self._path)) and parts[common] == self._path[common]:
            common += 1
        self._leave(common)
        for part in parts[common:]:
            self._fds.append(os.open(part, _DIR, dir_fd=self._fds[-1] if self._fds else self._stage))
            self._path.append(part)
        return self._fds[-1] if self._fds else self._stage

    def _leave(self, depth: int) -> None:
        while len(self._fds) > depth:
            os.close(self._fds.pop())
            self._path.pop()

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
        for name, header in self._tops.items():
            self.last_name = name
            if header.is_dir:
                os.mkdir(name, 0o700, dir_fd=self._target)  # claims the name, or fails
                os.rename(name, name, src_dir_fd=self._stage, dst_dir_fd=self._target)
                fd = os.open(name, _DIR, dir_fd=self._target)
                try:
                    _finish(fd, header)
                finally:
                    os.close(fd)
            else:
                os.link(name, name, src_dir_fd=self._stage, dst_dir_fd=self._target, follow_symlinks=False)
        os.fsync(self._target)


def _times(header: qfile.FileHeader) -> tuple[int, int]:
    return header.atime * 10**9 + header.atime_ns, header.mtime * 10**9 + header.mtime_ns


def _finish(fd: int, header: qfile.FileHeader) -> None:
    os.fchmod(fd, header.permissions)
    os.utime(fd, ns=_times(header))


def _exists(name: bytes, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def _remove_tree(parent: int, name: bytes) -> None:
    """Remove all below, whatever its modes are; what is gone already is fine."""
    try:
        fd = os.open(name, _DIR, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EACCES:
            os.chmod(name, 0o700, dir_fd=parent)
            _remove_tree(parent, name)
            return
        os.unlink(name, dir_fd=parent)
        return
    try:
        os.fchmod(fd, 0o700)
        for entry in os.listdir(fd):
            _remove_tree(fd, os.fsencode(entry))
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


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
