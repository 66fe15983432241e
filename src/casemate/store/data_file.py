"""The file of a store: read as a whole, replaced as a whole, so that a crash leaves the old one or the new one.

::

    write .qubes.xml.tmp-…  →  fsync  →  link the old file as qubes.xml.1  →  rename over qubes.xml
                            →  fsync of the directory  →  the caller is told that it is saved

Who writes holds the store's exclusive lock; reading needs none, because a rename is atomic.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from casemate.store.document import MAX_SIZE
from casemate.store.files import Files
from casemate.store.history import History
from casemate.wire.errors import StoreError

Signature = tuple[int, int, int]
"""What tells two states of the file apart: inode, time of change in nanoseconds, size."""

_CHUNK = 1 << 20
"""Bytes of one read where a file turns out larger than its status said."""


def signature_of(status: os.stat_result) -> Signature:
    """The signature of a file from its status."""
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class DataFile:
    """One store's file. The store makes it, reads it under its cache's lock, and writes it under the file's lock."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self.history = History(path, files)
        self._files = files
        self._buffer = bytearray()

    def signature(self) -> Signature:
        """The present signature; raises FileNotFoundError."""
        return signature_of(self.path.stat())

    def find_signature(self) -> Signature | None:
        """The present signature; None where there is no file."""
        try:
            return self.signature()
        except FileNotFoundError:
            return None

    def content(self, file: FileIO, size: int) -> bytes | bytearray:
        """All of an open file that was ``size`` bytes long, or one byte more than may be; good until the next call.

        Each call reads into the same memory: to have the kernel find and clear new memory for some megabytes takes
        longer than to read them.
        """
        size, buffer = min(size, MAX_SIZE), self._buffer
        if len(buffer) > size:
            del buffer[size:]
        else:
            buffer.extend(bytes(size - len(buffer)))
        read = file.readinto(buffer)
        rest = file.read(1)
        if read == size and not rest:
            return buffer
        # Somebody writes into the file without a rename, or it is larger than may be.
        rest = bytes(buffer[:read]) + rest
        while len(rest) <= MAX_SIZE and (more := file.read(_CHUNK)):
            rest += more
        return rest

    def clean(self) -> None:
        """Remove temporary files of killed writers; only the holder of the exclusive lock has any."""
        begin = f".{self.path.name}.tmp-"
        for name in os.listdir(self.path.parent):
            if name.startswith(begin):
                self._files.remove(self.path.with_name(name))

    def replace(
        self, data: bytes, expected: Signature | None, put: Callable[[Path, Signature], None], keep: bool = True
    ) -> Signature:
        """Write a new file and put it in place of the old one; its signature. Raises StoreError.

        ``expected`` is the file that the new content was made from (None: there is none); if it is another one by
        now, nothing happens. ``put`` is given the temporary file and has to rename it, under whatever lock the cache
        of the reader needs. ``keep`` says whether the old file becomes the one before the last.
        """
        files = self._files
        temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        previous = temporary.with_name(temporary.name + "-1")
        try:
            mode, group = 0o600, -1
            if expected is not None:
                status = self.path.stat()
                mode, group = status.st_mode & 0o7777, status.st_gid
            try:
                signature = self._write(temporary, data, mode, group)
                self._require(expected)
                if expected is not None and keep:
                    self.history.keep()
                    files.link(self.path, previous)
                    files.rename(previous, self.history.previous)
                    # After a crash just here both may be names of one file, and then rename(2) does nothing.
                    files.remove(previous)
                put(temporary, signature)
            except BaseException:
                files.remove(temporary)
                files.remove(previous)
                raise
        except OSError as error:
            raise StoreError(f"{self.path}: not saved: {error.strerror}") from error
        return signature

    def rename_from(self, temporary: Path) -> None:
        """Put a temporary file in place."""
        self._files.rename(temporary, self.path)

    def make_durable(self) -> None:
        """Sync the directory after a rename. A failure here does not undo the rename, so its message says so."""
        try:
            self._files.sync_directory(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"{self.path}: saved, but a power failure might still undo it: {error.strerror}"
            ) from error

    def _write(self, path: Path, data: bytes, mode: int, group: int) -> Signature:
        files = self._files
        fd = files.create(path)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[files.write(fd, rest) :]
            files.set_owner(fd, mode, group)
            files.sync(fd)
            return signature_of(os.fstat(fd))
        finally:
            files.close(fd)

    def _require(self, expected: Signature | None) -> None:
        """Refuse if the file is not the one that was read."""
        if self.find_signature() != expected:
            raise StoreError(f"{self.path} was changed by something that ignores its lock; nothing was saved")
