"""tar2qfile: sends the files of a tar archive as a stream of qfile, and waits for the receiver's answer.

    tar2qfile FILE [PREFIX ...]

Regular files and directories whose names begin with one of the prefixes; all where none is given. Names that GNU tar
and pax write long, and sizes beyond 8 GiB, are read too (the standard library reads the archive). Standard input is the
receiver's answer, so the archive comes from a file or a named pipe.
"""

from __future__ import annotations

import os
import select
import sys
import tarfile
import zlib

from casemate.wire import qfile
from casemate.wire.errors import CasemateError, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK = 1 << 20
PATIENCE = 600.0
"""Seconds that the receiver may take for its answer."""


class _Answered(Exception):
    """The receiver has answered, or gone, before everything was sent."""


class Sender:
    """Writes the stream to ``out`` and reads the receiver's answer from ``back``."""

    def __init__(self, out: int, back: int) -> None:
        self._out = out
        self._back = back
        self._crc = 0
        self._result = qfile.ResultReader()
        self._poll = select.poll()
        self._poll.register(back, select.POLLIN)

    def _write(self, data: bytes) -> None:
        if self._poll.poll(0):
            raise _Answered
        self._crc = zlib.crc32(data, self._crc)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._out, view) :]
        except BrokenPipeError:
            raise _Answered from None

    def send(self, archive: tarfile.TarFile, prefixes: Sequence[str]) -> None:
        """All wanted members, then the end. Directories come before what is in them, and once more after all."""
        closing: dict[str, bytes] = {}
        for member in archive:
            name = os.path.normpath(member.name.lstrip("/"))
            if not (member.isdir() or member.isreg()) or (prefixes and not name.startswith(tuple(prefixes))):
                continue
            mtime = int(member.mtime) * 10**9
            for directory in (*_parents(name), *((name,) if member.isdir() else ())):
                mode = member.mode & 0o777 if directory == name else 0o700
                header = qfile.build_header(os.fsencode(directory), 0o40000 | mode, 0, mtime, mtime)
                if directory not in closing:
                    self._write(header)
                if directory not in closing or directory == name:
                    closing[directory] = header
            if member.isreg():
                self._member(archive, member, name)
        for header in reversed(closing.values()):
            self._write(header)
        self._write(qfile.END)

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        mtime = int(member.mtime) * 10**9
        self._write(qfile.build_header(os.fsencode(name), 0o100000 | member.mode & 0o777, member.size, mtime, mtime))
        file, left = archive.extractfile(member), member.size
        while left and file is not None:
            data = file.read(min(left, CHUNK))
            if not data:
                raise ProtocolError(f"the archive ends within {name!a}")
            self._write(data)
            left -= len(data)

    def confirmed(self) -> qfile.Result:
        """The receiver's answer; ProtocolError when there is none, or not in time."""
        while (found := self._result.get(False)) is None:
            if not self._poll.poll(PATIENCE * 1000):
                raise ProtocolError("the receiver gives no answer")
            data = os.read(self._back, 4096)
            if not data:
                found = self._result.get(True)
                if found is None:
                    raise ProtocolError("the receiver went away without an answer")
                break
            self._result.feed(data)
        return found

    @property
    def crc(self) -> int:
        """Checksum of all that was sent."""
        return self._crc


def _parents(name: str) -> Iterator[str]:
    for at, letter in enumerate(name):
        if letter == "/":
            yield name[:at]


def main(argv: list[str]) -> int:
    """0 when the receiver has taken all, or says that it has had enough; else 1."""
    words = argv[1:]
    if not words:
        sys.stderr.write("usage: tar2qfile FILE [PREFIX ...]\n")
        return 2
    sender = Sender(1, 0)
    complete = True
    try:
        with open(words[0], "rb") as file, tarfile.open(fileobj=file, mode="r|*", ignore_zeros=True) as archive:
            sender.send(archive, words[1:])
    except _Answered:
        complete = False
    except (tarfile.TarError, EOFError, zlib.error, CasemateError, OSError) as error:
        sys.stderr.write(f"tar2qfile: {error}\n".encode("ascii", "backslashreplace").decode())
        return 1
    os.close(1)  # the end of the stream travels
    try:
        result = sender.confirmed()
    except CasemateError as error:
        sys.stderr.write(f"tar2qfile: {error}\n")
        return 1
    if result.code == qfile.EDQUOT:
        return 0  # the receiver has had enough: what it wanted
    if result.code:
        why = os.strerror(result.code) if result.code < 256 else f"error {result.code}"
        sys.stderr.write(f"tar2qfile: {qfile.shown(result.last_name)}: {why}\n")
        return 1
    if not complete or result.crc != sender.crc:
        sys.stderr.write("tar2qfile: what arrived is not what was sent\n")
        return 1
    return 0
