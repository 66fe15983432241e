"""The program in the disposable: reads the backup by the reader that everybody uses, and tells this host what is in it.

Standard input has what this host says, standard output what we say; see ``casemate.backup.paranoid``.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator

from casemate.backup.contents import StoredQube
from casemate.backup.outer import Member, members
from casemate.backup.paranoid import facts, frames
from casemate.backup.qfile_source import QfileSource
from casemate.backup.reader import Backup
from casemate.backup.restored_firewall import RULES, rules_of
from casemate.wire.errors import CasemateError

_PROGRESS = 4 << 20
"""Bytes after which this host is told how far we are."""


class HostSaysNoError(CasemateError):
    """This host cannot take what we have for it: the qube counts as damaged, the others go on."""


class _Host:
    """This host, as a source of the backup's bytes and as the target of the reader."""

    def __init__(self) -> None:
        self._buffer = memoryview(b"")
        self._ended = False
        self._read = 0

    # -- frames

    def exactly(self, count: int) -> bytes:
        """So many bytes of standard input."""
        parts = []
        while count:
            part = os.read(0, min(count, frames.PIECE))
            if not part:
                raise SystemExit(1)  # this host has gone
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def say(self, kind: bytes, *parts: bytes | memoryview) -> None:
        """Send a frame."""
        left = memoryview(frames.build(kind, *parts))
        while left:
            left = left[os.write(1, left) :]

    def say_value(self, kind: bytes, value: object) -> None:
        """Send a frame with a value."""
        self.say(kind, frames.text(value))

    def hear(self, allowed: bytes) -> tuple[bytes, bytes]:
        """The next frame."""
        return frames.read(self.exactly, allowed)

    def _asked(self) -> None:
        kind, body = self.hear(frames.DONE + frames.REFUSED)
        if kind == frames.REFUSED:
            raise HostSaysNoError(body.decode("utf-8", "replace"))

    # -- the backup's bytes

    def read(self, count: int, /) -> bytes:
        """At most so many bytes of the backup; nothing at its end."""
        if not self._buffer and not self._ended:
            self.say(frames.NEED)
            _kind, body = self.hear(frames.DATA)
            self._buffer, self._ended = memoryview(body), not body
        out, self._buffer = bytes(self._buffer[:count]), self._buffer[count:]
        return out

    # -- the target of the reader, and a sink of it

    def volume(self, qube: StoredQube, name: str) -> _Host:
        """See ``reader.Target``."""
        self._names = [qube.name, name]
        return self

    def begin(self, size: int) -> None:
        """See ``Sink``."""
        self.say_value(frames.VOLUME, [*self._names, size])
        self._asked()

    def write(self, offset: int, data: memoryview) -> None:
        """See ``Sink``."""
        for at in range(0, len(data), frames.PIECE):
            self.say(frames.WRITE, frames.PLACE.pack(offset + at), data[at : at + frames.PIECE])

    def finish_volume(self, _qube: StoredQube, _name: str) -> None:
        """See ``reader.Target``."""
        self.say(frames.FINISH)
        self._asked()

    def file(self, qube: StoredQube, name: str, data: bytes) -> None:
        """See ``reader.Target``. Of files that no restore uses only the name is told."""
        if name == "firewall.xml":  # parsed here, not on this host
            name, data = RULES, (rules_of(data) or "").encode()
        elif name != "notes.txt":
            return
        self.say(frames.FILE, frames.text([qube.name, name]), b"\n", memoryview(data))
        self._asked()

    def progress(self, count: int, /) -> None:
        """See ``reader.Target``."""
        self._read += count
        if self._read >= _PROGRESS:
            self.say(frames.PROGRESS, frames.PLACE.pack(self._read))
            self._read = 0


def _members(host: _Host, form: str) -> Iterator[Member]:
    return members(host) if form == "tar" else QfileSource(host, lambda _answer: None).members()


def main() -> int:
    """Read one backup; 0 when this host was told everything, be it good or bad."""
    host = _Host()
    order = frames.value(host.hear(frames.ORDER)[1])
    try:
        found = _members(host, order["form"])
        with contextlib.closing(Backup(found, base64.b64decode(order["passphrase"]), order["filter"])) as backup:
            host.say_value(frames.CONTENTS, facts.contents_said(backup.contents))
            asked = frames.value(host.hear(frames.RUN)[1])
            report = backup.run(host, asked["only"], asked["home"])
            host.say_value(frames.REPORT, facts.report_said(report))
    except CasemateError as error:
        host.say(frames.FAILED, str(error).encode("utf-8", "replace")[:4096])
    return 0
