"""The parts of the backup format, each by itself: containers, filters, archives, headers, profiles."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.backup import container, filters, header, profile
from casemate.backup.container import Cost
from casemate.backup.errors import BackupError, DamagedError, RefusedError
from casemate.backup.filters import Source
from casemate.backup.outer import members, write_member
from casemate.backup.profile import Profile, ProfileError
from casemate.backup.tar_reader import Collected, only_file
from casemate.backup.tar_writer import BytesContent, FileContent, archive

LOW = Cost(4)
"""For tests alone: what it protects is open to anybody."""


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


# -- containers


def test_a_container_is_that_of_the_scrypt_program() -> None:
    # Made by scrypt(1) 1.3.1: printf hello | scrypt enc --logN 10 -r 1 -p 1, passphrase "pass".
    sealed = bytearray(b"".join(container.encrypt(bytearray(b"hello"), b"pass", Cost(10, 1, 1))))
    assert len(sealed) == 5 + container.OVERHEAD and sealed[:8] == b"scrypt\0\x0a"
    assert bytes(container.decrypt(sealed, b"pass", "x")) == b"hello"


@given(st.binary(max_size=200), st.integers(0, 7), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_no_bit_of_a_container_can_change(data: bytes, bit: int, at: int) -> None:
    sealed = bytearray(b"".join(container.encrypt(bytearray(data), b"pass", LOW)))
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(DamagedError):
        container.decrypt(sealed, b"pass", "x")


def test_the_work_of_a_container_is_bounded() -> None:
    sealed = bytearray(b"".join(container.encrypt(bytearray(b"x"), b"pass", LOW)))

    def asking(cost: Cost) -> bytearray:
        import hashlib
        import struct

        head = struct.pack(">6sBBII32s", b"scrypt", 0, cost.log_n, cost.r, cost.p, bytes(32))
        return bytearray(head + hashlib.sha256(head).digest()[:16] + sealed[64:])

    for cost in (Cost(26, 8, 1), Cost(30, 8, 1), Cost(10, 1, 1 << 22), Cost(20, 8, 16), Cost(0, 8, 1), Cost(63, 1, 1)):
        with pytest.raises(DamagedError, match="asks for"):
            container.decrypt(asking(cost), b"pass", "x")


# -- filters


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_what_a_filter_packs_it_unpacks(name: str) -> None:
    data = os.urandom(100_000) + bytes(900_000)
    packed = filters.compressor(name)
    out = b"".join([packed(data[:500_000]), packed(data[500_000:]), packed(b"")])
    assert b"".join(filters.undo(name, pieces(out, 777), "x")) == data


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "lzma", "zstd"])
@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_cut_stream_is_noticed(name: str, cut: int) -> None:
    data = os.urandom(50_000)
    packed = {
        "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
        "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    }[name](data)  # fmt: skip
    assert b"".join(filters.undo(name, pieces(packed), "x")) == data
    with pytest.raises(DamagedError):
        b"".join(filters.undo(name, pieces(packed[:-cut]), "x"))


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_streams_of_parallel_compressors_follow_one_another(name: str) -> None:
    make = {
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }
    packed = make[name](b"one") + make[name](b"two")
    assert b"".join(filters.undo(name, pieces(packed, 5), "x")) == b"onetwo"


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_a_bomb_goes_off_in_small_pieces(name: str) -> None:
    packed = filters.compressor(name)
    bomb = b"".join([packed(bytes(1 << 20)) for _ in range(64)]) + packed(b"")
    assert len(bomb) < 1 << 20
    largest = max(len(piece) for piece in filters.undo(name, pieces(bomb, 1 << 20), "x"))
    assert largest <= 1 << 18


def test_a_file_in_a_bomb_stops_at_its_declared_size() -> None:
    source = Source(
        filters.undo("gzip", pieces(gzip.compress(b"".join(archive("a/b", BytesContent(bytes(1 << 22)), 0)))), "x"), "x"
    )
    with pytest.raises(DamagedError, match="at most 1000"):
        only_file(source, "a/b", 1000, Collected())


def test_unknown_filters_are_refused() -> None:
    for name in ("sh", "cat", "", "zip"):
        with pytest.raises(RefusedError):
            filters.check(name)
        with pytest.raises(RefusedError):
            filters.compressor(name)


def test_zlib_that_is_no_zlib() -> None:
    with pytest.raises(DamagedError):
        b"".join(filters.undo("gzip", pieces(zlib.compress(b"x")), "x"))


# -- archives of one file


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)


@given(st.integers(0, 3_000_000), st.lists(st.tuples(st.integers(0, 2_900_000), st.integers(1, 70_000)), max_size=5))
@settings(max_examples=25, deadline=None)
def test_a_sparse_file_comes_back_and_gnu_tar_reads_it(size: int, parts: list[tuple[int, int]]) -> None:
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        sparse(path, size, {at: os.urandom(count) for at, count in parts if at + count <= size})
        with open(path, "rb") as file:
            data = b"".join(archive("vm1/private.img", FileContent(file.fileno()), 0))
        assert len(data) % 10240 == 0
        sink = Collected()
        only_file(Source(pieces(data), "x"), "vm1/private.img", size, sink)
        assert bytes(sink.data) == path.read_bytes()
        subprocess.run(["tar", "-x", "-C", directory], input=data, check=True)
        assert (Path(directory) / "vm1/private.img").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("form", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=1.0"]])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, form: list[str]) -> None:
    import subprocess

    # More pieces than fit into a header, so that the map goes on in further blocks.
    sparse(tmp_path / "image", 20_000_000, {at * 400_000: os.urandom(5000) for at in range(45)})
    data = subprocess.run(
        ["tar", "-c", "--sparse", *form, "image"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert len(data) < 1_000_000
    sink = Collected()
    only_file(Source(pieces(data, 4096), "x"), "image", 20_000_000, sink)
    assert bytes(sink.data) == (tmp_path / "image").read_bytes()


def test_sizes_beyond_8_gib_are_written_and_read(tmp_path: Path) -> None:
    sparse(tmp_path / "image", 9 << 30, {(9 << 30) - 4096: b"end".ljust(4096, b"!")})
    with open(tmp_path / "image", "rb") as file:
        data = b"".join(archive("a/b", FileContent(file.fileno()), 0))

    class Last(Collected):
        def begin(self, size: int) -> None:
            assert size == 9 << 30

        def write(self, offset: int, data: memoryview) -> None:
            assert offset >= (9 << 30) - 4096
            self.data += data

    sink = Last()
    only_file(Source(pieces(data), "x"), "a/b", 9 << 30, sink)
    assert sink.data.startswith(b"end")


def tar_of(*entries: tuple[str, bytes, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as made:
        for name, kind, data in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tar_of(), "empty"),
        (tar_of(("b", b"0", b"x")), "contains b"),
        (tar_of(("a", b"2", b"")), "not a regular file"),
        (tar_of(("a", b"3", b"")), "not a regular file"),
        (tar_of(("a", b"0", b"x"), ("a", b"0", b"y")), "more than one"),
        (tar_of(("a", b"0", b"x" * 101)), "at most 100"),
        (tar_of(("a", b"0", b"x"))[:512], "too early"),
        (tar_of(("a", b"0", b"x"))[:1024], "cut"),
        (tar_of(("a", b"0", b"x")) + b"y" * 512, "tar header"),
        (b"no tar at all".ljust(512), "tar header"),
    ],
    ids=["empty", "other", "link", "device", "two", "large", "no-data", "no-end", "junk", "text"],
)
def test_archives_that_are_not_of_one_file(data: bytes, why: str) -> None:
    with pytest.raises(DamagedError, match=why):
        only_file(Source(pieces(data), "x"), "a", 100, Collected())


@given(st.binary(max_size=3000), st.integers(0, 2999))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_the_reader(data: bytes, at: int) -> None:
    good = bytearray(b"".join(archive("a", BytesContent(b"content"), 0)))
    good[at : at + len(data)] = data
    try:
        only_file(Source(pieces(bytes(good)), "x"), "a", 100_000, Collected())
    except BackupError:
        pass


# -- the outer archive


def test_members_come_back_as_written() -> None:
    out = io.BytesIO()
    for name, data in (("one", b"1"), ("two", bytes(5000)), ("empty", b"")):
        assert write_member(out, name, [data]) % 10240 == 0
    out.seek(0)
    assert [(one.name, bytes(one.data())) for one in members(out, 10_000)] == [
        ("one", b"1"),
        ("two", bytes(5000)),
        ("empty", b""),
    ]


@given(st.binary(max_size=2000), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_the_outer_reader(data: bytes, at: int) -> None:
    out = io.BytesIO()
    write_member(out, "one", [b"1" * 3000])
    mixed = bytearray(out.getvalue())
    mixed[at : at + len(data)] = data
    try:
        for one in members(io.BytesIO(bytes(mixed)), 10_000):
            one.data()
    except RefusedError:
        pass


# -- header


def test_the_header_comes_back() -> None:
    found = header.parse(header.build("20260101T000000-1", "zstd"))
    assert (found.version, found.filter, found.backup_id) == (4, "zstd", "20260101T000000-1")
    assert header.parse(header.build("x", "")).filter == ""


# -- profiles


def test_a_profile_comes_back() -> None:
    made = Profile("dom0", "/backup", ("work", "$tag:home"), ("x*",), "gzip", passphrase_text="Ärger mit ß")
    assert profile.parse(profile.build(made), "p") == made


def test_a_profile_as_upstreams_tool_writes_it() -> None:
    found = profile.parse(b"compression: true\ndestination_path: /b\ndestination_vm: dom0\ninclude: null\n", "p")
    assert found == Profile("dom0", "/b")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"), ("- a", "no mapping"), ("destination: x", "has the key"), ("include: work", "list of names"),
        ("include: [1]", "list of names"), ("destination_vm: '../x'", "qube name"), ("compression: sh", "sh"),
        ("compression: [1]", "filter"), ("{", "no YAML"), ("destination_path: {}", "text"),
        ("!!python/object:os.x {}", "YAML"),
    ],
)  # fmt: skip
def test_a_profile_that_is_wrong_says_why(text: str, why: str) -> None:
    with pytest.raises(BackupError, match=why):
        profile.parse(text.encode(), "p")


def test_choice_of_qubes() -> None:
    chooses = Profile("dom0", "/b", ("work", "$type:TemplateVM", "@tag:home", "lab-*"), ("lab-2",)).chooses
    assert chooses("work", "AppVM", (), False)
    assert chooses("deb", "TemplateVM", (), False)
    assert chooses("a", "AppVM", ("home",), False)
    assert chooses("lab-1", "AppVM", (), False) and not chooses("lab-2", "AppVM", (), True)
    assert not chooses("other", "AppVM", (), True)
    everything = Profile("dom0", "/b", None, ("x",)).chooses
    assert (
        everything("a", "AppVM", (), True)
        and not everything("a", "AppVM", (), False)
        and not everything("x", "AppVM", (), True)
    )


def test_passphrases() -> None:
    assert profile.check_passphrase("a b") == b"a b"
    for text in ("", "a\nb", "a\0"):
        with pytest.raises(ProfileError):
            profile.check_passphrase(text)
    weak = ("", "a", "aaaaaaaaaaaaaaaaaaaa", "password", "12345678", "correct horse")
    strong = ("correct horse battery staple lamp", "xK9#mQ2$vL7!pR", "8Yd2kQz9WmRt4Lx")
    assert all(profile.strength(text) < profile.WEAK_BITS for text in weak)
    assert all(profile.strength(text) >= profile.WEAK_BITS for text in strong)
