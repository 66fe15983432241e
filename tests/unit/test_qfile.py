"""qfile: the codec, and a receiver under attack. Whatever is sent, nothing lands outside and nothing half is seen.

One file although it is long: codec and receiver are attacked with the same streams.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.agent import unpack
from casemate.filecopy import unpack as unpacking
from casemate.filecopy.limits import Limits
from casemate.filecopy.unpack import SPARE, SPARE_INODES, Unpacker
from casemate.wire import qfile
from casemate.wire.errors import ProtocolError
from casemate.wire.qfile import FileError

DIR, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


def entry(name: bytes, mode: int = FILE, content: bytes = b"", **fields: int) -> bytes:
    """An object as an attacker may send it: nothing is checked."""
    values = {"namelen": len(name) + 1, "size": len(content), "atime": 1, "atime_ns": 0, "mtime": 2, "mtime_ns": 3}
    values.update(fields)
    header = struct.pack(
        "<IIQIIII",
        values["namelen"], mode, values["size"],
        values["atime"], values["atime_ns"], values["mtime"], values["mtime_ns"],
    )  # fmt: skip
    return header + name + b"\0" + content


class Receiver:
    """Runs an unpacker on a stream; ``code`` is what it would answer."""

    def __init__(self, path: Path, stream: bytes, limits: dict[str, int] | None = None, **options: object) -> None:
        self.target = path / "in"
        self.target.mkdir(exist_ok=True)
        reading, writing = os.pipe()
        fd = os.open(self.target, os.O_RDONLY)
        self.unpacker = Unpacker(reading, fd, Limits(limits), **options)  # type: ignore[arg-type]

        def feed() -> None:
            try:
                with open(writing, "wb") as out:
                    out.write(stream)
            except BrokenPipeError:
                pass

        thread = threading.Thread(target=feed)
        thread.start()
        self.code, self.message = 0, ""
        try:
            self.unpacker.run()
        except FileError as error:
            self.code, self.message = error.code, str(error)
        except OSError as error:
            self.code = error.errno or -1
        finally:
            os.close(reading)
            thread.join()
            os.close(fd)

    def names(self) -> list[str]:
        return sorted(str(p.relative_to(self.target)) for p in self.target.rglob("*"))


# -- codec


@given(
    st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b),
    st.sampled_from([DIR, FILE, LINK]),
    st.integers(-(10**18), 2**63),
    st.integers(1, 5000),
)
def test_headers_round_trip(name: bytes, mode: int, mtime: int, size: int) -> None:
    size = 0 if mode == DIR else size
    raw = qfile.build_header(name, mode, size, 0, mtime)
    header = qfile.parse_header(raw[:32])
    assert header is not None and raw[32:] == name + b"\0"
    assert (header.name_length, header.mode, header.size) == (len(name) + 1, mode, size)
    assert header.mtime == min(max(mtime // 10**9, 0), 2**32 - 1)
    assert qfile.parse_header(qfile.END) is None


@given(st.binary(min_size=32, max_size=32))
def test_any_header_is_taken_or_a_file_error(raw: bytes) -> None:
    try:
        qfile.parse_header(raw)
    except FileError as error:
        assert error.code


GOOD_NAMES = [
    b"a", b"a b", b"a/b/c", b"..a", b"a..", b"...", b"~!@#$%^&*()'\"", "na\u00efve".encode(),
    "\u6587\u4ef6\u3002".encode(), b"x" * 255, b"/".join([b"d"] * 5000),
]  # fmt: skip
BAD_NAMES = [
    b"", b"/a", b"a/", b"a//b", b".", b"..", b"./a", b"a/.", b"a/..", b"a/../b", b"/", b"//", b"x" * 256,
    b"a\n", b"\x1b[0m", b"a\x7f", b"\xff", b"\xc3", b"\xed\xa0\x80", "a\u202eb".encode(),
    "\u200bx".encode(), "e\u0301".encode(), "\ufb01".encode(), "\U0001f600".encode(), "a\u00a0b".encode(),
    "\u2215".encode(), "\uff41".encode(),
    "\uff0e\uff0e".encode(), "\ue000".encode(), "\U000e0061".encode(),
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_are_taken(name: bytes) -> None:
    assert qfile.parse_name(name + b"\0") == name.split(b"/")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_lesson_L19_names_that_are_not_taken(name: bytes) -> None:
    with pytest.raises(FileError) as info:
        qfile.parse_name(name + b"\0")
    assert info.value.code == qfile.EILSEQ


def test_a_name_has_one_nul_at_its_end() -> None:
    for raw in (b"a", b"a\0\0", b"a\0b\0"):
        with pytest.raises(FileError):
            qfile.parse_name(raw)


@pytest.mark.parametrize(
    ("where", "target", "good"),
    [
        ("a/l", "x", True), ("a/l", "./x", True), ("a/l", "x/y/", True), ("a/l", "..", False), ("a/l", "../x", False),
        ("a/b/l", "../x", True), ("a/b/l", "..", True), ("a/b/l", "../..", False), ("a/b/l", "x/../y", False),
        ("a/b/l", "./.././x", True), ("a/b/l", "x/..", False), ("a/b/l", "/etc/passwd", False), ("a/b/l", "/", False),
        ("l", "x", False), ("a/l", "", False), ("a/l", "x\n", False), ("a/b/c/l", "../../x", True),
        ("a/b/c/l", "../../../x", False), ("a/l", "..x", True), ("a/l", "...", True), ("a/l", "a\u202e", False),
    ],
)  # fmt: skip
def test_lesson_L18_links_stay_in_their_top_directory(where: str, target: str, good: bool) -> None:
    parts = where.encode().split(b"/")
    if good:
        qfile.check_link(parts, target.encode())
        # the claim, checked against the kernel's own idea of the path
        base = os.path.normpath("/top/" + os.path.dirname(where) + "/" + target)
        assert base == f"/top/{where.split('/')[0]}" or base.startswith(f"/top/{where.split('/')[0]}/")
    else:
        with pytest.raises(FileError):
            qfile.check_link(parts, target.encode())


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=50), st.integers(1, 30))
def test_results_round_trip(code: int, crc: int, name: bytes, step: int) -> None:
    raw = qfile.build_result(code, crc, name)
    reader = qfile.ResultReader()
    for at in range(0, len(raw), step):
        assert reader.get(False) is None
        reader.feed(raw[at : at + step])
    found = reader.get(False)
    assert found is not None and (found.code, found.crc, found.last_name) == (code, crc, name)


def test_short_and_hostile_results() -> None:
    reader = qfile.ResultReader()
    assert reader.get(True) is None
    reader.feed(qfile.build_result(17, 5, b"x")[:16])
    assert reader.get(False) is None
    found = reader.get(True)
    assert found is not None and (found.code, found.crc, found.last_name) == (17, 5, b"")
    reader = qfile.ResultReader()
    reader.feed(qfile.RESULT.pack(0, 0, 0) + b"\xff\xff\xff\xff")
    with pytest.raises(ProtocolError):
        reader.get(False)
    with pytest.raises(ProtocolError):
        reader.feed(bytes(20000))


def test_lesson_L19_what_is_shown_cannot_hurt() -> None:
    assert qfile.shown(b'a"b\x1b[2J\xff\n') == "a_b\\x1b[2J\\xff\\n"


# -- receiver


def test_a_good_stream(tmp_path: Path) -> None:
    stream = (
        entry(b"top", DIR) + entry(b"top/f", FILE, b"content", mtime=5) + entry(b"top/l", LINK, b"f")
        + entry(b"top/ro", stat.S_IFDIR | 0o500) + entry(b"top/ro/in", stat.S_IFREG | 0o6777, b"x")
        + entry(b"top/ro", stat.S_IFDIR | 0o500, mtime=77) + entry(b"top", stat.S_IFDIR | 0o3550, mtime=88)
        + entry(b"alone", FILE, b"y") + qfile.END
    )  # fmt: skip
    done = Receiver(tmp_path, stream)
    assert (done.code, done.names()) == (0, ["alone", "top", "top/f", "top/l", "top/ro", "top/ro/in"])
    assert done.unpacker.crc == zlib.crc32(stream)
    top = done.target / "top"
    assert (top / "f").read_bytes() == b"content" and (top / "f").stat().st_mtime_ns == 5 * 10**9 + 3
    assert os.readlink(top / "l") == "f"
    assert stat.S_IMODE(top.stat().st_mode) == 0o550 and int(top.stat().st_mtime) == 88
    assert stat.S_IMODE((top / "ro").stat().st_mode) == 0o500 and int((top / "ro").stat().st_mtime) == 77
    assert stat.S_IMODE((top / "ro/in").stat().st_mode) == 0o777


BIG = 2**63
ATTACKS = {
    "cut": entry(b"a", FILE, b"xyz")[:-1],
    "no end": entry(b"a", FILE, b"xyz"),
    "cut header": entry(b"a")[:20],
    "empty": b"",
    "absolute": entry(b"/etc/x") + qfile.END,
    "dotdot": entry(b"../x") + qfile.END,
    "inner dotdot": entry(b"d", DIR) + entry(b"d/../../x") + qfile.END,
    "trailing slash": entry(b"d/", DIR) + qfile.END,
    "missing parent": entry(b"d/x") + qfile.END,
    "file as parent": entry(b"d") + entry(b"d/x") + qfile.END,
    "through a link": entry(b"d", DIR) + entry(b"d/e", DIR) + entry(b"d/l", LINK, b"e") + entry(b"d/l/x") + qfile.END,
    "mkdir over a link": entry(b"d", DIR) + entry(b"d/l", LINK, b".") + entry(b"d/l", DIR) + qfile.END,
    "file over a link": entry(b"d", DIR) + entry(b"d/l", LINK, b"x") + entry(b"d/l") + qfile.END,
    "top link": entry(b"l", LINK, b"x") + qfile.END,
    "link out": entry(b"d", DIR) + entry(b"d/l", LINK, b"../../x") + qfile.END,
    "absolute link": entry(b"d", DIR) + entry(b"d/l", LINK, b"/etc/passwd") + qfile.END,
    "twice": entry(b"a") + entry(b"a") + qfile.END,
    "dir over file": entry(b"a") + entry(b"a", DIR) + qfile.END,
    "fifo": entry(b"a", stat.S_IFIFO | 0o644) + qfile.END,
    "device": entry(b"a", stat.S_IFCHR | 0o644) + qfile.END,
    "block": entry(b"a", stat.S_IFBLK | 0o644) + qfile.END,
    "socket": entry(b"a", stat.S_IFSOCK | 0o644) + qfile.END,
    "no type": entry(b"a", 0o644) + qfile.END,
    "huge": entry(b"a", size=BIG) + qfile.END,
    "huger": entry(b"a", size=2**64 - 1) + qfile.END,
    "terabyte": entry(b"a", size=2**40) + qfile.END,
    "sum": entry(b"a", FILE, b"x" * 600) + entry(b"b", FILE, b"x" * 425) + qfile.END,
    "namelen 0": entry(b"a", namelen=0) + qfile.END,
    "namelen 1": entry(b"", namelen=1) + qfile.END,
    "namelen max": entry(b"a", namelen=16384) + qfile.END,
    "namelen 2^32-1": entry(b"a", namelen=2**32 - 1) + qfile.END,
    "name with nul": entry(b"a\0b", namelen=4) + qfile.END,
    "nsec": entry(b"a", mtime_ns=10**9) + qfile.END,
    "dir with content": entry(b"d", DIR, b"x") + qfile.END,
    "empty link": entry(b"d", DIR) + entry(b"d/l", LINK, b"") + qfile.END,
    "long link": entry(b"d", DIR) + entry(b"d/l", LINK, b"x" * 16384) + qfile.END,
    "dirs": b"".join(entry(b"d%d" % i, DIR) for i in range(11)) + qfile.END,
    "same dir for ever": entry(b"d", DIR) * 30 + qfile.END,
    "stage": entry(b".incoming-x") + qfile.END,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_qsb_014_lesson_L17_L18_an_attack_leaves_nothing(tmp_path: Path, attack: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/theirs").write_text("kept")
    before = sorted(p for p in tmp_path.rglob("*"))
    good = entry(b"first", FILE, b"fine") + entry(b"dir", DIR) + entry(b"dir/locked", stat.S_IFDIR)
    done = Receiver(tmp_path, good + ATTACKS[attack], {"max-bytes": 1024, "max-files": 10}, idle=5)
    assert done.code not in (0, -1)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_lesson_L17_limits_are_exact(tmp_path: Path) -> None:
    stream = (
        entry(b"a", FILE, b"x" * 600) + entry(b"b", FILE, b"x" * 400) + entry(b"d", DIR) + entry(b"d", DIR) + qfile.END
    )
    assert Receiver(tmp_path, stream, {"max-bytes": 1000, "max-files": 3, "max-depth": 0}).code == 0
    for name in ("a", "b"):
        (tmp_path / "in" / name).unlink()
    (tmp_path / "in/d").rmdir()
    for limits, said in (
        ({"max-bytes": 999}, "more than 999 bytes of data (filecopy-max-bytes)"),
        ({"max-files": 2}, "more than 2 files, directories and links (filecopy-max-files)"),
    ):
        done = Receiver(tmp_path, stream, limits)
        assert (done.code, done.message, done.names()) == (qfile.EDQUOT, said, [])
    deep = entry(b"d", DIR) + entry(b"d/d", DIR) + entry(b"d/d/f") + qfile.END
    assert Receiver(tmp_path, deep, {"max-depth": 1}).message == "more than 1 directories deep (filecopy-max-depth)"
    assert Receiver(tmp_path, deep, {"max-depth": 2}).code == 0


def space(free: int, inodes: int = 1 << 20, files: int = 1 << 21) -> SimpleNamespace:
    return SimpleNamespace(f_bavail=free, f_frsize=1, f_favail=inodes, f_files=files)


def test_lesson_L17_the_receivers_disk_is_never_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPARE bytes stay free: a file that would leave less is refused before its content comes."""
    size = 2 << 20
    stream = entry(b"f", FILE, b"x" * size) + qfile.END
    for free, code in ((size + 4096 + SPARE, 0), (size + 4096 + SPARE - 1, qfile.ENOSPC)):
        monkeypatch.setattr(os, "fstatvfs", lambda _fd, free=free: space(free))
        done = Receiver(tmp_path, stream)
        assert (done.code, done.names()) == (code, [] if code else ["f"])
        assert bool(code) == (f"{SPARE} bytes stay free" in done.message)
        (tmp_path / "in/f").unlink(missing_ok=True)


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_small_files_do_not_fill_the_disk_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A disk that shrinks by what is written to it: files of one byte, each of which takes a block and an inode."""
    made = 0

    def shrinking(_fd: int) -> SimpleNamespace:
        nonlocal made
        made = sum(len(files) for _top, _dirs, files in os.walk(tmp_path / "in"))
        if what == "bytes":
            return space(SPARE + 4096 * 1000 - 4096 * made)
        return space(1 << 40, SPARE_INODES + 1000 - made)

    monkeypatch.setattr(os, "fstatvfs", shrinking)
    stream = b"".join(entry(b"f%d" % number, FILE, b"x") for number in range(1500)) + qfile.END
    done = Receiver(tmp_path, stream)
    assert (done.code, done.names()) == (qfile.ENOSPC, [])
    assert f"{what} stay free" in done.message
    assert made >= 900, "and not long before that"
    done = Receiver(tmp_path, b"".join(entry(b"f%d" % number) for number in range(900)) + qfile.END)
    assert done.code == 0 and len(done.names()) == 900


def test_a_disk_without_a_number_of_inodes_has_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: space(1 << 40, 0, 0))
    assert Receiver(tmp_path, entry(b"f") + qfile.END).code == 0


def test_a_disk_that_others_fill_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([space(1 << 40), space(SPARE)])
    monkeypatch.setattr(unpacking, "CHECK_BYTES", 1 << 20)
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: next(answers))
    done = Receiver(tmp_path, entry(b"f", FILE, b"x" * (4 << 20)) + qfile.END)
    assert (done.code, done.names()) == (qfile.ENOSPC, [])


def test_a_name_that_is_refused_is_the_one_that_is_told(tmp_path: Path) -> None:
    for bad in ("naïve \u20ac.txt".encode(), b"a\nb", b"\xff", b"../x"):
        done = Receiver(tmp_path, entry(b"good") + entry(bad) + qfile.END)
        assert (done.code, done.unpacker.last_name) == (qfile.EILSEQ, bad)
    done = Receiver(tmp_path, entry(b"good") + entry(b"x", namelen=16384) + qfile.END)
    assert (done.code, done.unpacker.last_name) == (qfile.ENAMETOOLONG, b"")


ODD = [
    "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f600.png", "5 \u20ac", "e\u0301", "a\u00a0b",
]  # fmt: skip


@pytest.mark.parametrize("raw", [*(text.encode() for text in ODD), b"\xff\xfe", b"a\n\x1b[2Jb"])
def test_all_names_are_taken_where_that_was_asked_for(tmp_path: Path, raw: bytes) -> None:
    top = entry(b"d", DIR)
    for odd in (entry(b"d/" + raw, FILE, b"x"), entry(b"d/l", LINK, raw)):
        assert Receiver(tmp_path, top + odd + top + qfile.END).code == qfile.EILSEQ
    stream = top + entry(b"d/" + raw, FILE, b"x") + entry(b"d/l", LINK, raw) + top + qfile.END
    done = Receiver(tmp_path, stream, all_names=True)
    assert done.code == 0
    assert sorted(os.listdir(os.fsencode(done.target / "d"))) == sorted([raw, b"l"])
    assert os.readlink(os.fsencode(done.target / "d/l")) == raw


@pytest.mark.parametrize("name", [b"", b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"x" * 256, b"\xff/.."])
def test_all_names_are_still_plain_relative_paths(name: bytes) -> None:
    with pytest.raises(FileError) as info:
        qfile.parse_name(name + b"\0", all_names=True)
    assert info.value.code == qfile.EILSEQ


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "in/d").mkdir(parents=True)
    (tmp_path / "in/d/x").write_text("theirs")
    (tmp_path / "in/f").write_text("theirs")
    (tmp_path / "in/l").symlink_to("nowhere")
    for stream in (entry(b"f"), entry(b"d", DIR), entry(b"l"), entry(b"f", DIR), entry(b"d")):
        done = Receiver(tmp_path, stream + qfile.END)
        assert done.code == qfile.EEXIST
    assert (tmp_path / "in/d/x").read_text() == (tmp_path / "in/f").read_text() == "theirs"


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "in"
    original = Unpacker._sync

    def taken(self: Unpacker) -> None:
        original(self)
        (target / "f").write_text("theirs")

    monkeypatch.setattr(Unpacker, "_sync", taken)
    assert Receiver(tmp_path, entry(b"f", FILE, b"ours") + qfile.END).code == qfile.EEXIST
    assert (target / "f").read_text() == "theirs"
    assert os.listdir(target) == ["f"]


def test_a_sender_that_stops_is_not_waited_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, entry(b"f", FILE, b"x" * 10)[:-5])
    target = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(FileError) as info:
        Unpacker(reading, target, idle=0.2).run()
    assert info.value.code == qfile.EREMOTEIO
    assert os.listdir(tmp_path) == []
    for fd in (reading, writing, target):
        os.close(fd)


def test_qsb_014_directories_that_are_moved_away_meanwhile_take_nothing_along(tmp_path: Path) -> None:
    """The user moves what arrives while deep paths come in: all of it is in a directory that only we know."""
    stream = b"".join(
        entry(b"/".join([b"d"] * depth), DIR) for depth in range(1, 40)
    ) + b"".join(entry(b"/".join([b"d"] * depth) + b"/f") for depth in range(1, 40)) + qfile.END  # fmt: skip
    target = tmp_path / "in"
    target.mkdir()
    stop = threading.Event()

    def mover() -> None:
        while not stop.is_set():
            for name in ("d", "x"):
                try:
                    os.rename(target / name, target / ("x" if name == "d" else "d"))
                except OSError:
                    pass

    thread = threading.Thread(target=mover)
    thread.start()
    try:
        done = Receiver(tmp_path, stream)
    finally:
        stop.set()
        thread.join()
    assert set(os.listdir(tmp_path)) == {"in"}
    if done.code == 0:
        assert len(done.names()) == 39 * 2


def test_what_a_killed_unpacker_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "in/.incoming-123-abc"
    (left / "d").mkdir(parents=True)
    (left / "d/f").write_text("half")
    (left / "d").chmod(0)
    assert Receiver(tmp_path, entry(b"f") + qfile.END).code == 0
    assert os.listdir(tmp_path / "in") == ["f"]


def test_the_incoming_directory_is_not_a_link(tmp_path: Path) -> None:
    (tmp_path / "QubesIncoming").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "QubesIncoming/evil").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        unpack.incoming(str(tmp_path), "evil")
    os.close(unpack.incoming(str(tmp_path), "work"))
    assert stat.S_IMODE((tmp_path / "QubesIncoming/work").stat().st_mode) == 0o700


@given(st.binary(max_size=300))
def test_garbage_after_a_good_start_leaves_nothing(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("q")
    done = Receiver(path, entry(b"f", FILE, b"x") + garbage, idle=5)
    assert done.names() == ([] if done.code else ["f"])


# -- the program


def run_main(home: Path, stream: bytes, *argv: str, source: str = "work") -> tuple[int, bytes]:
    """Run the program in a child, as a service is run."""
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-m", "casemate.agent.entry", "qfile-unpacker", *argv],
        env={**os.environ, "HOME": str(home), "QREXEC_REMOTE_DOMAIN": source},
        input=stream,
        capture_output=True,
    )
    return result.returncode, result.stdout


@pytest.mark.parametrize(
    ("stream", "argv", "source", "code", "name"),
    [
        (entry(b"f", FILE, b"x") + qfile.END, (), "work", 0, b"f"),
        (entry(b"f", FILE, b"x"), (), "work", qfile.EREMOTEIO, b"f"),
        (entry(b"f", FILE, b"xx") + qfile.END, ("--max-bytes=1",), "work", qfile.EDQUOT, b"f"),
        (entry(b"f") + qfile.END, (), "../up", qfile.EINVAL, b""),
        (entry(b"f") + qfile.END, ("--nonsense",), "work", qfile.EINVAL, b""),
        (entry(b"\xff") + qfile.END, (), "work", qfile.EILSEQ, b"\xff"),
        (entry(b"\xff") + qfile.END, ("--allow-all-names",), "work", 0, b"\xff"),
        (entry(b"f") + entry(b"g") + qfile.END, ("--max-files=1",), "work", qfile.EDQUOT, b"g"),
        (entry(b"f") + qfile.END, ("--max-depth=x",), "work", qfile.EINVAL, b""),
    ],
)
def test_there_is_always_a_whole_result(
    tmp_path: Path, stream: bytes, argv: tuple[str, ...], source: str, code: int, name: bytes
) -> None:
    status, answer = run_main(tmp_path, stream, *argv, source=source)
    assert status == code
    reader = qfile.ResultReader()
    reader.feed(answer)
    found = reader.get(False)
    assert found is not None and (found.code, found.last_name) == (code, name)
    if code == 0:
        assert found.crc == zlib.crc32(stream)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_arrive_whatever_the_receivers_umask_is(tmp_path: Path, umask: int) -> None:
    modes = (0o600, 0o644, 0o666, 0o755, 0o777, 0o400, 0o000)
    stream = b"".join(entry(b"f%o" % mode, stat.S_IFREG | mode, b"x") for mode in modes) + qfile.END
    (tmp_path / "in").mkdir()
    before = os.umask(umask)
    try:
        done = Receiver(tmp_path, stream)
    finally:
        os.umask(before)
    assert done.code == 0
    assert [stat.S_IMODE((done.target / f"f{mode:o}").stat().st_mode) for mode in modes] == list(modes)
