"""QubesDB records: every boundary, any cut of the stream, no memory for what a header claims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.wire import qdb
from casemate.wire.errors import ProtocolError, ValueInvalidError

paths = st.from_regex(r"\A(/[A-Za-z0-9_.:@-]{1,8}){1,5}/?\Z")
values = st.binary(max_size=200)


@given(st.lists(st.tuples(st.integers(0, 13), paths, values), max_size=8), st.integers(1, 200))
def test_records_arrive_however_they_are_cut(sent: list[tuple[int, str, bytes]], step: int) -> None:
    wire = b"".join(qdb.record(*r) for r in sent)
    reader, got = qdb.RecordReader(strict=True), []
    for at in range(0, len(wire), step):
        reader.feed(wire[at : at + step])
        while (record := reader.next()) is not None:
            got.append((record.kind, record.path, record.data))
    assert got == sent
    assert reader.waiting == 0


def test_layout_and_zero_padding() -> None:
    wire = qdb.record(qdb.WRITE, "/a", b"xyz")
    assert wire == b"\x01/a" + bytes(62) + bytes(3) + b"\x03\0\0\0" + b"xyz"


@pytest.mark.parametrize(("size", "good"), [(0, True), (1, True), (3071, True), (3072, False)])
def test_length_of_values(size: int, good: bool) -> None:
    if good:
        reader = qdb.RecordReader(strict=True)
        reader.feed(qdb.record(qdb.WRITE, "/a", bytes(size)))
        record = reader.next()
        assert record is not None and len(record.data) == size
    else:
        with pytest.raises(ValueInvalidError):
            qdb.record(qdb.WRITE, "/a", bytes(size))
        reader = qdb.RecordReader(strict=True)
        reader.feed(qdb.RECORD.pack(qdb.WRITE, b"/a", size))
        with pytest.raises(ProtocolError):
            reader.next()


@pytest.mark.parametrize("step", [1, 7, 72, 5000, 100000])
def test_a_value_that_is_too_long_is_swallowed_for_a_local_client(step: int) -> None:
    wire = qdb.RECORD.pack(qdb.WRITE, b"/a", 20000) + bytes(20000) + qdb.record(qdb.READ, "/b")
    reader, got = qdb.RecordReader(), []
    for at in range(0, len(wire), step):
        reader.feed(wire[at : at + step])
        while (record := reader.next()) is not None:
            got.append((record.kind, record.path, record.data, bool(record.fault)))
        assert reader.waiting <= 72 + step
    assert got == [(qdb.WRITE, "/a", b"", True), (qdb.READ, "/b", b"", False)]


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (14, b"/a"),
        (255, b"/a"),
        (0, b"a" * 64),
        (0, b"-a"),
        (0, b"/a b"),
        (0, b"/a\n"),
        (0, b"/\xff"),
        (0, b"/a$"),
    ],
)
def test_a_fault_is_told_to_a_client_and_fatal_for_a_peer(kind: int, field: bytes) -> None:
    wire = qdb.RECORD.pack(kind, field, 3) + b"abc"
    reader = qdb.RecordReader()
    reader.feed(wire)
    record = reader.next()
    assert record is not None and record.fault
    reader = qdb.RecordReader(strict=True)
    reader.feed(wire)
    with pytest.raises(ProtocolError):
        reader.next()


def test_junk_behind_the_nul_and_in_the_padding_is_ignored() -> None:
    reader = qdb.RecordReader(strict=True)
    reader.feed(b"\x00/a\0junk \xff".ljust(65, b"j") + b"pad" + bytes(4))
    record = reader.next()
    assert record is not None and record.path == "/a"


@given(st.binary(max_size=600), st.integers(1, 100))
def test_garbage_is_never_more_than_a_fault(garbage: bytes, step: int) -> None:
    for strict in (False, True):
        reader = qdb.RecordReader(strict)
        try:
            for at in range(0, len(garbage), step):
                reader.feed(garbage[at : at + step])
                while reader.next() is not None:
                    pass
                assert reader.waiting <= qdb.RECORD.size + qdb.MAX_DATA + step
        except ProtocolError:
            assert strict


@pytest.mark.parametrize("path", ["/a", "/a/b", "/A-b/x_y.z:@9", "/" + "a" * 62])
def test_paths_that_are_stored(path: str) -> None:
    assert qdb.stored_path(path) == qdb.subtree_path(path) == qdb.query_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "a", "/", "/a/", "//a", "/a//b", "/./a", "/a/..", "/-a", "-a", "/a b", "/" + "a" * 63, "/a\0", "/\u00e9"],
)
def test_paths_that_are_not_stored(path: str) -> None:
    with pytest.raises(ValueInvalidError):
        qdb.stored_path(path)


def test_subtrees_and_queries() -> None:
    assert qdb.subtree_path("/") == "/"
    assert qdb.subtree_path("/a/") == "/a/"
    assert qdb.query_path("") == ""
    assert qdb.query_path("/a/b") == "/a/b"
    for path in ("/a//", "", "a/", "//"):
        with pytest.raises(ValueInvalidError):
            qdb.subtree_path(path)
    for path in ("-", "a b", "\u00e9", "a" * 64):
        with pytest.raises(ValueInvalidError):
            qdb.query_path(path)


def test_values() -> None:
    assert qdb.value(b"\xff" * 3071) == b"\xff" * 3071
    for bad in (b"a\0", b"x" * 3072):
        with pytest.raises(ValueInvalidError):
            qdb.value(bad)
