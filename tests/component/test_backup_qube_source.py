"""A qube that is asked for a backup and lies: what it sends is refused, it hears of that, and nothing of it is kept."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest

from casemate.backup.errors import BackupError, RefusedError
from casemate.backup.outer import members
from casemate.backup.qfile_source import QfileSource
from casemate.backup.reader import Backup, Nothing
from casemate.wire import qfile
from tests import backup_samples as samples

SAMPLE = "v4-none.qbk"


def stream(
    change: Callable[[list[tuple[bytes, int, bytes]]], None] = lambda _entries: None, end: bytes = qfile.END
) -> bytes:
    """A sample as tar2qfile sends it, after a change of its entries (name, mode, data)."""
    entries = [(one.name.encode(), 0o100600, bytes(one.data())) for one in members(io.BytesIO(samples.files()[SAMPLE]))]
    change(entries)
    out = b""
    for name, mode, data in entries:
        out += qfile.HEADER.pack(len(name) + 1, mode, len(data), 0, 0, 0, 0) + name + b"\0" + data
    return out + end


def read(data: bytes) -> tuple[bool, bytes, str]:
    """(whether all is whole, our answer, what is wrong)."""
    answers: list[bytes] = []
    source = QfileSource(io.BytesIO(data), answers.append)
    try:
        backup = Backup(source.members(), b"correct horse")
        try:
            report = backup.run(Nothing())
        finally:
            backup.close()
        return report.whole, answers[0] if answers else b"", report.error
    except BackupError as error:
        return False, b"", str(error)
    finally:
        source.answer()


def test_an_honest_one_is_told_that_all_has_arrived() -> None:
    data = stream()
    answers: list[bytes] = []
    source = QfileSource(io.BytesIO(data), answers.append)
    backup = Backup(source.members(), b"correct horse")
    assert backup.run(Nothing()).whole
    backup.close()
    source.answer()
    code, _zero, crc = struct.unpack_from("<IIQ", answers[0])
    assert (code, crc) == (qfile.OK, zlib.crc32(data))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a link", lambda entries: entries.insert(2, (b"vm3/x.000.enc", 0o120777, b"/etc/passwd"))),
        ("a path that leads out", lambda entries: entries.insert(2, (b"../../etc/passwd.000.enc", 0o100600, b"x"))),
        ("a device", lambda entries: entries.insert(2, (b"vm3/x.000.enc", 0o060600, b""))),
        ("no header", lambda entries: entries.pop(0)),
        ("a chunk twice", lambda entries: entries.append(entries[5])),
        ("other order", lambda entries: entries.reverse()),
        ("a missing file", lambda entries: entries.pop(4)),
        (
            "a changed byte",
            lambda entries: entries.__setitem__(4, (entries[4][0], 0o100600, entries[4][2][:-1] + b"!")),
        ),
        ("a name of 2000", lambda entries: entries.insert(2, (b"v" * 2000, 0o100600, b"x"))),
    ],
)
def test_lies(name: str, change: Callable[[list[tuple[bytes, int, bytes]]], None]) -> None:
    whole, _answer, why = read(stream(change))
    assert not whole, name


def test_an_end_in_the_midst() -> None:
    data = stream()
    for cut in (10, 1000, len(data) // 2, len(data) - qfile.HEADER.size, len(data) - 1):
        assert not read(data[:cut])[0], cut


def test_a_size_beyond_all_bounds_is_not_waited_for() -> None:
    head = qfile.HEADER.pack(14, 0o100600, 1 << 50, 0, 0, 0, 0) + b"backup-header\0"
    with pytest.raises(RefusedError, match="no member"):
        next(QfileSource(io.BytesIO(head), lambda _data: None).members())


def test_no_bytes_break_it() -> None:
    data = stream()
    made = random.Random(3)
    for _ in range(60):
        bad = bytearray(data[:40_000])
        for _ in range(made.randrange(1, 6)):
            bad[made.randrange(min(len(bad), 6000))] = made.randrange(256)
        read(bytes(bad))
