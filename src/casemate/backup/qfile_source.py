"""The members of a backup that a qube sends as a stream of qfile: read as they come, never unpacked to a disk.

The qube's ``tar2qfile`` takes the outer archive apart and waits for an answer: a checksum over everything that arrived,
or an error code with the name it is about. Whoever reads must give that answer (``answer``), also when it stops early:
then the sender ends at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from casemate.backup.errors import RefusedError
from casemate.backup.outer import MAX_MEMBER, MAX_NAME, Member, Readable, exactly
from casemate.wire import qfile
from casemate.wire.errors import ProtocolError, printable


class QfileSource:
    """One stream. ``members`` once, then ``answer`` in any case."""

    def __init__(self, stream: Readable, reply: Callable[[bytes], object]) -> None:
        self._stream = stream
        self._reply = reply
        self._crc = 0
        self._complete = False
        self._last = b""
        self.began = False
        """Whether anything has come."""

    def read(self, size: int, /) -> bytes:
        """Bytes of the stream, counted into the checksum."""
        data = self._stream.read(size)
        self.began = self.began or bool(data)
        self._crc = zlib.crc32(data, self._crc)
        return data

    def members(self, most: int = MAX_MEMBER) -> Iterator[Member]:
        """The regular files in their order; directories are left out. RefusedError for everything else."""
        while True:
            try:
                header = qfile.parse_header(self._exactly(qfile.HEADER.size))
            except ProtocolError as error:
                raise RefusedError(f"The qube sends something that is no backup: {error}") from None
            if header is None:
                self._complete = True
                return
            if header.name_length > MAX_NAME:
                raise RefusedError(f"The qube sends a name of {header.name_length} bytes")
            self._last = self._exactly(header.name_length)[:-1]
            name = self._last.decode("ascii", "backslashreplace")
            if header.is_dir:
                continue
            if not header.is_file or header.size > most:
                raise RefusedError(f"The qube sends {printable(name, 80)}, which is no member of a backup")
            member = Member(name, header.size, self, header.size, 0)
            yield member
            member.skip()

    def answer(self) -> None:
        """Tell the sender how it went: all has arrived, or we have had enough."""
        code = qfile.OK if self._complete else qfile.EDQUOT
        try:
            self._reply(qfile.build_result(code, self._crc, self._last))
        except OSError:
            pass  # it has gone already

    def _exactly(self, count: int) -> bytes:
        return exactly(self, count, "The qube stopped sending in the midst of the backup")
