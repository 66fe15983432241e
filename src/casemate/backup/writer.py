"""Writes a backup of version 4: files in, encrypted chunks out, in one pass and in bounded memory.

The derivation of a key takes longer than everything else done to a chunk. Names of chunks are known in advance and
salts are ours, so keys are derived ahead on other processors, while data is compressed and written.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from casemate.backup import container, filters, header
from casemate.backup.container import Cost, Keys
from casemate.backup.outer import Writable, write_member
from casemate.backup.reader import MANIFEST
from casemate.backup.tar_writer import BytesContent, Content, archive

CHUNK = 100 << 20
"""Bytes at which a file's stream is cut, before encryption; upstream's writer cuts there too."""
_AHEAD = 3
"""Keys that are derived before they are needed. Each takes ``Cost.memory`` while it is derived."""


@dataclass(slots=True)
class File:
    """A file of the backup. ``open`` is called when its turn comes, and gives its content and what releases it."""

    name: str
    open: Callable[[], tuple[Content, Callable[[], None]]]
    large: bool = False
    """Whether it may have more than one chunk."""


def bytes_file(name: str, data: bytes) -> File:
    """A small file."""
    return File(name, lambda: (BytesContent(data), lambda: None))


class Writer:
    """Writes one backup. ``run`` once, then ``close`` in any case; the stream stays its owner's."""

    def __init__(
        self,
        stream: Writable,
        passphrase: bytes,
        packed: str = "gzip",
        cost: Cost = container.DEFAULT_COST,
        progress: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """``packed``: the compression filter, "" for none. ``progress`` is told of bytes of content as they come."""
        self.backup_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        self.written = 0
        self._stream = stream
        self._passphrase = passphrase
        self._packed = packed
        self._cost = cost
        self._progress = progress
        self._workers = ThreadPoolExecutor(max(2, os.cpu_count() or 1))
        self._keys: dict[str, Future[tuple[bytes, Keys]]] = {}
        self._encrypting: deque[tuple[str, Future[list[bytes | memoryview]]]] = deque()
        self._manifest: dict[str, dict[str, object]] = {}

    def close(self) -> None:
        """Give the threads back."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def run(self, store: bytes, files: Iterable[File]) -> None:
        """Write it all: the header, the store's copy, the files in their order, the manifest."""
        head = header.build(self.backup_id, self._packed)
        self._member(header.NAME, [head])
        sealed = container.encrypt(bytearray(head), f"{header.NAME}!".encode() + self._passphrase, self._cost)
        self._member(header.AUTHENTIC, sealed)
        planned = [bytes_file(header.STORE, store), *files]
        for index, file in enumerate(planned):
            self._derive(f"{file.name}.000")
            for later in planned[index + 1 : index + _AHEAD]:
                self._derive(f"{later.name}.000")
            self._file(file)
        manifest = json.dumps({"files": self._manifest}, sort_keys=True).encode("ascii")
        self._file(bytes_file(MANIFEST, manifest))
        while self._encrypting:
            self._flush()

    # -- one file

    def _file(self, file: File) -> None:
        content, release = file.open()
        try:
            digest = hashlib.sha256()
            size = 0
            extents = list(content.extents())
            expected = sum(length for _offset, length in extents)

            def counted() -> Iterator[bytes]:
                nonlocal size
                for piece in archive(file.name, content, int(time.time()), extents):
                    digest.update(piece)
                    size += len(piece)
                    self._progress(len(piece))
                    yield piece

            self._cut(file, self._compressed(counted()), lambda: (size, expected))
        finally:
            release()
        if file.name not in (header.STORE, MANIFEST):
            self._manifest[file.name] = {"size": size, "sha256": digest.hexdigest()}

    def _compressed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if not self._packed:
            yield from pieces
            return
        compress = filters.compressor(self._packed)
        for piece in pieces:
            if out := compress(piece):
                yield out
        yield compress(b"")

    def _cut(self, file: File, pieces: Iterator[bytes], at_source: Callable[[], tuple[int, int]]) -> None:
        """Cut the stream into chunks. ``at_source``: how much of the content has been read, and how much there is."""
        number, chunk, written = 0, bytearray(), 0
        for piece in pieces:
            written += len(piece)
            at = 0
            while at < len(piece):
                if len(chunk) == CHUNK:
                    self._seal(file.name, number, chunk)
                    number, chunk = number + 1, bytearray()
                if file.large and len(chunk) > CHUNK // 2 and self._goes_on(at_source(), written, CHUNK - len(chunk)):
                    self._derive(f"{file.name}.{number + 1:03d}")
                taken = min(CHUNK - len(chunk), len(piece) - at)
                chunk += memoryview(piece)[at : at + taken]
                at += taken
        self._seal(file.name, number, chunk)
        self._keys.pop(f"{file.name}.{number + 1:03d}", None)  # the file was shorter than it might have been

    @staticmethod
    def _goes_on(source: tuple[int, int], written: int, room: int) -> bool:
        """Whether another chunk will most likely be needed, at the rate of compression so far. A key that nobody needs
        would cost as much as all else that is done to a chunk."""
        read, expected = source
        return bool(read) and (expected - read) * written / read > room

    # -- chunks

    def _derive(self, name: str) -> Future[tuple[bytes, Keys]]:
        found = self._keys.get(name)
        if found is None:
            key = f"{self.backup_id}!{name}!".encode() + self._passphrase
            found = self._keys[name] = self._workers.submit(container.new_keys, key, self._cost)
        return found

    def _seal(self, file: str, number: int, chunk: bytearray) -> None:
        """Encrypt a chunk on another processor; the one before it is written meanwhile. Two are in memory at most."""
        name = f"{file}.{number:03d}"
        keys = self._derive(name)
        del self._keys[name]
        self._encrypting.append((name, self._workers.submit(self._encrypt, chunk, keys)))
        while len(self._encrypting) > 1:
            self._flush()

    def _encrypt(self, chunk: bytearray, keys: Future[tuple[bytes, Keys]]) -> list[bytes | memoryview]:
        return container.encrypt(chunk, b"", self._cost, keys.result())

    def _flush(self) -> None:
        name, job = self._encrypting.popleft()
        self._member(f"{name}.enc", job.result())

    def _member(self, name: str, pieces: list[bytes | memoryview]) -> None:
        self.written += write_member(self._stream, name, pieces)
