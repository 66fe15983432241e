"""From members to files: each chunk authenticated, in its order, without a gap; keys of the next ones derived ahead."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from casemate.backup import container, openssl
from casemate.backup.errors import DamagedError, RefusedError
from casemate.backup.filters import Pieces, Source, undo, undo_volume
from casemate.backup.header import STORE, BackupHeader
from casemate.backup.outer import Member
from casemate.backup.tar_reader import continued
from casemate.wire.errors import printable

AHEAD = 100 << 20
"""Bytes of chunks that may wait beside the one in use. At least one always may."""
_MANY = 64
_NUMBER = r"\.([0-9]{3,9})"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_V4 = re.compile(rf"((?:vm[0-9]{{1,9}}/|dom0-home/)?(?:{_PART}){_NUMBER})\.enc")
_OLD = re.compile(rf"((?:{_PART}/)*(?:{_PART}|\.)){_NUMBER}")
_LEGACY_STORE = f"../../{STORE}.000.enc"
"""How release 4.0.1-rc1 named the store; that name, as it is, is part of the key."""

Wanted = Callable[[str], bool]


Plain = Callable[[], "bytes | bytearray | memoryview"]


class Chunk:
    """A part of a file. ``load`` reads its bytes from the stream, before the next member can be read; ``plain`` waits
    until they are decrypted, and raises DamagedError when they are not authentic."""

    __slots__ = ("_load", "_plain", "file", "number", "size")

    def __init__(self, file: str, number: int, size: int, load: Callable[[], Plain]) -> None:
        self.file = file
        self.number = number
        self.size = size
        self._load: Callable[[], Plain] | None = load
        self._plain: Plain = lambda: b""

    def load(self) -> None:
        """Read it; RefusedError when the stream ends before."""
        if self._load is not None:
            load, self._load = self._load, None
            self._plain = load()

    def plain(self) -> bytes | bytearray | memoryview:
        """Its bytes."""
        self.load()
        return self._plain()


class Chunks:
    """The files of a backup after its header. ``wanted`` says of which the content is needed; while it is None, nothing
    is read ahead. ``close`` ends what is under way."""

    def __init__(
        self, members: Iterator[Member], first: Member | None, header: BackupHeader, passphrase: bytes
    ) -> None:
        self.wanted: Wanted | None = None
        self._members = members
        self._first = first
        self._header = header
        self._passphrase = passphrase
        self._ahead: deque[Chunk] = deque()
        self._waiting = 0
        self._ended = False
        self._error: RefusedError | None = None
        # Two derivations at once keep two processors busy; more of them fight for memory bandwidth and gain nothing.
        self._workers = ThreadPoolExecutor(min(2, os.cpu_count() or 1))

    def close(self) -> None:
        """Stop; to be called however the reading ended."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def files(self) -> Iterator[tuple[str, Source]]:
        """Each file with its content, as the archive that it was stored as. What is not read of it is left out."""
        seen: set[str] = set()
        while (chunk := self._peek()) is not None:
            name = chunk.file
            if name in seen:
                raise RefusedError(f"{name} is in the backup twice")
            seen.add(name)
            yield name, Source(self._content(name), name)
            while (chunk := self._peek()) is not None and chunk.file == name:
                self._pop()

    # -- content

    def _content(self, name: str) -> Pieces:
        header = self._header
        if header.version == 2:
            return continued(
                (
                    undo_volume(self._open(iter((volume,)), name), header.compressed, name)
                    for volume in self._parts(name)
                ),
                name,
            )
        pieces: Pieces = iter(self._parts(name))
        if header.version == 3:
            pieces = self._open(pieces, name)
        return undo(header.filter, pieces, name) if header.compressed else pieces

    def _open(self, pieces: Pieces, name: str) -> Pieces:
        return openssl.decrypted(pieces, self._passphrase, name) if self._header.encrypted else pieces

    def _parts(self, name: str) -> Iterator[memoryview]:
        expected = 0
        # Where the backup cannot be read on, this file may still be whole: its own end tells.
        while (chunk := self._peek(quiet=True)) is not None and chunk.file == name:
            self._pop()
            if chunk.number != expected:
                raise DamagedError(f"{name}: chunk {chunk.number:03d} comes where {expected:03d} was expected")
            expected += 1
            yield memoryview(chunk.plain())

    # -- chunks

    def _peek(self, quiet: bool = False) -> Chunk | None:
        """The next chunk, of which no more than the name need have been read yet."""
        while not self._ended and (not self._ahead or self._may_read_on()):
            try:
                if self._ahead:
                    self._ahead[-1].load()
                chunk = self._read()
            except RefusedError as error:
                # What was read before it is still good, and is handed over first.
                self._ended, self._error = True, error
                break
            if chunk is None:
                self._ended = True
                break
            self._ahead.append(chunk)
            self._waiting += chunk.size
        if self._ahead:
            return self._ahead[0]
        if self._error is not None and not quiet:
            raise self._error
        return None

    def _may_read_on(self) -> bool:
        return self.wanted is not None and self._waiting < AHEAD and len(self._ahead) < _MANY

    def _pop(self) -> None:
        chunk = self._ahead.popleft()
        self._waiting -= chunk.size
        chunk.load()

    def _read(self) -> Chunk | None:
        member, self._first = self._first or next(self._members, None), None
        if member is None:
            return None
        return self._read_v4(member) if self._header.version == 4 else self._read_old(member)

    def _read_v4(self, member: Member) -> Chunk:
        if member.name == _LEGACY_STORE:
            file, number = STORE, 0
        else:
            match = _V4.fullmatch(member.name)
            if match is None:
                raise RefusedError(f"The backup has a member that does not belong there: {printable(member.name, 80)}")
            file, number = match[1].rpartition(".")[0], int(match[2])
        key = f"{self._header.backup_id}!{member.name.removesuffix('.enc')}!".encode() + self._passphrase

        def load() -> Plain:
            if self._unwanted(file):
                member.skip()
                return lambda: b""
            data = member.data()
            job: Future[memoryview] = self._workers.submit(container.decrypt, data, key, f"{file}.{number:03d}")
            return job.result

        return Chunk(file, number, member.size, load)

    def _read_old(self, member: Member) -> Chunk:
        match = _OLD.fullmatch(member.name)
        if match is None:
            raise RefusedError(f"The backup has a member that does not belong there: {printable(member.name, 80)}")
        file, number = match[1], int(match[2])

        def load() -> Plain:
            unwanted = self._unwanted(file)
            data = bytearray() if unwanted else member.data()
            code = next(self._members, None)
            if code is None or code.name != f"{member.name}.hmac" or code.size > 4096:
                raise RefusedError(f"{member.name} has no code of authentication after it")
            text = bytes(code.data())
            if unwanted:
                return lambda: b""

            def plain() -> bytearray:
                openssl.check_mac(data, text, self._header.digest, self._passphrase, member.name)
                return data

            return plain

        return Chunk(file, number, member.size, load)

    def _unwanted(self, file: str) -> bool:
        return self.wanted is not None and not self.wanted(file)
