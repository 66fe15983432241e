"""tar2qfile in a qube and qfile-dom0-unpacker on the host, joined by two pipes as a call joins them."""

from __future__ import annotations

import io
import os
import pwd
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.component.rig import SOURCE

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that another user can reach."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def archive(path: Path, members: dict[str, bytes | None], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o750
            else:
                member.size, member.mode, member.mtime = len(data), 0o640, 1_000_000_000
            tar.addfile(member, io.BytesIO(data or b""))
    return path


def carry(tar: Path, directory: Path, *prefixes: str, options: tuple[str, ...] = (), user: str = USER,
          environment: dict[str, str] | None = None) -> tuple[int, int, str, str]:  # fmt: skip
    """Status of sender and receiver, and what each said."""
    there, back = os.pipe(), os.pipe()
    sender = subprocess.Popen(
        [sys.executable, "-m", "casemate.agent.entry", "tar2qfile", str(tar), *prefixes],
        env=ENVIRONMENT, stdin=back[0], stdout=there[1], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    receiver = subprocess.Popen(
        [sys.executable, "-m", "casemate.cli", "qfile-dom0-unpacker", *options, user, str(directory)],
        env={**ENVIRONMENT, **(environment or {})}, stdin=there[0], stdout=back[1], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for fd in (*there, *back):
        os.close(fd)
    _out, taken = receiver.communicate(timeout=60)
    _out, sent = sender.communicate(timeout=60)
    return sender.returncode, receiver.returncode, sent, taken


def files(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_arrives(place: Path, format: int) -> None:
    long = "/".join(["d" * 60] * 3) + "/f" if format != tarfile.USTAR_FORMAT else "d/f"
    members = {"top": None, "top/a": b"content" * 50_000, long: b"deep", "alone": b""}
    target = place / "in"
    target.mkdir()
    assert carry(archive(place / "x.tar", members, format), target) == (0, 0, "", "")
    found = files(target)
    assert {name: data for name, data in found.items() if data is not None} == {
        name: data for name, data in members.items() if data is not None
    }
    assert (target / "top").stat().st_mode & 0o777 == 0o750
    assert (target / "top/a").stat().st_mode & 0o777 == 0o640 and (target / "top/a").stat().st_mtime == 1_000_000_000


def test_only_what_begins_like_this_and_a_list_of_it(place: Path) -> None:
    target = place / "in"
    target.mkdir()
    tar = archive(place / "x.tar", {"vm1/private.img": b"1", "vm2/private.img": b"2", "notes": b"3"})
    assert carry(tar, target, "vm2/", options=("-v",)) == (0, 0, "", "vm2/private.img\n")
    assert files(target) == {"vm2": None, "vm2/private.img": b"2"}


def test_what_the_receiver_does_not_want_ends_both_with_a_reason(place: Path) -> None:
    target = place / "in"
    target.mkdir()
    big = archive(place / "big.tar", {"a": bytes(8 << 20), "b": bytes(8 << 20)})
    sent, taken, _said, why = carry(big, target, environment={"UPDATES_MAX_BYTES": "1000"})
    assert (sent, taken) == (
        0,
        122,
    ) and "a: more than 1000 bytes of data (UPDATES_MAX_BYTES)" in why, "it has had enough, which is no fault"
    tree = archive(place / "tree.tar", {"d": None, "d/f": b"x"})
    sent, taken, said, why = carry(tree, target, options=("--only-regular-files",))
    assert (sent, taken) == (1, 22) and "d: Invalid argument" in said and "only files" in why
    sent, taken, said, _why = carry(tree, place / "missing")
    assert (sent, taken) == (1, 2) and "No such file" in said
    sent, taken, said, why = carry(tree, target, user="no-such-user")
    assert (sent, taken) == (1, 22) and "no user" in why
    assert files(target) == {}


def test_hostile_members_do_not_leave_the_directory(place: Path) -> None:
    for name in ("../out", "/etc/out", "a/../../out", "a\nb"):
        target = place / "in"
        target.mkdir(exist_ok=True)
        carry(archive(place / "x.tar", {name: b"x"}), target)
        assert not (place / "out").exists() and not Path("/etc/out").exists()
        assert all(path.is_relative_to(target) for path in target.rglob("*"))


def test_a_cut_archive_leaves_nothing(place: Path) -> None:
    tar = archive(place / "x.tar", {"a": b"x" * 100_000, "b": b"y" * 100_000})
    os.truncate(tar, 150_000)
    target = place / "in"
    target.mkdir()
    sent, taken, said, _why = carry(tar, target)
    assert (sent, taken) == (1, 121) and said
    assert files(target) == {}


def test_a_receiver_that_dies_ends_the_sender(place: Path) -> None:
    there, back = os.pipe(), os.pipe()
    tar = archive(place / "x.tar", {"a": bytes(8 << 20)})
    sender = subprocess.Popen(
        [sys.executable, "-m", "casemate.agent.entry", "tar2qfile", str(tar)],
        env=ENVIRONMENT, stdin=back[0], stdout=there[1], stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(there[1])
    os.close(back[0])
    os.read(there[0], 100)
    os.close(there[0])
    os.close(back[1])
    _out, err = sender.communicate(timeout=20)
    assert sender.returncode == 1 and b"without an answer" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another")
def test_files_belong_to_the_user_that_was_named(place: Path) -> None:
    target = place / "in"
    target.mkdir()
    os.chown(target, 65534, 65534)
    tar = archive(place / "x.tar", {"f": b"x"})
    assert carry(tar, target, user="65534")[:2] == (0, 0)
    assert (target / "f").stat().st_uid == 65534
    os.chown(target, 0, 0)
    sent, taken, said, _why = carry(tar, target, user="65534")
    assert (sent, taken) == (1, 13) and "Permission denied" in said
