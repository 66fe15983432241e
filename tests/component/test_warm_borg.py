"""borg that was loaded ahead does what borg does, and where it cannot be had borg is started as ever."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.backup.errors import BackupError, PassphraseError
from casemate.backup.incremental.borg import Borg
from casemate.backup.incremental.warm_borg import WarmBorg, WarmProcess
from tests.builders import wait_for


@pytest.fixture
def borg(tmp_path: Path) -> Iterator[Borg]:
    """An empty repository, and borg loaded."""
    made = Borg(tmp_path / "repository", b"secret", tmp_path / "base")
    made.init()
    made.load_ahead()
    yield made
    made.close()


def commands(borg: Borg) -> list[object]:
    """The processes of the commands that follow, as they are begun."""
    seen: list[object] = []
    real = borg._start

    def start(*words: str, **options: int) -> object:
        process, said = real(*words, **options)
        seen.append(process)
        return process, said

    borg._start = start  # type: ignore[method-assign, assignment]
    return seen


def server(borg: Borg) -> int:
    assert borg._warm is not None and borg._warm._server is not None
    return borg._warm._server.pid


def test_it_stores_lists_and_gives_back(borg: Borg) -> None:
    seen = commands(borg)
    data = os.urandom(1 << 20)
    borg.create("one", "a comment", iter([data[:1000], data[1000:]]))
    borg.create_small("two", "", b"small")
    assert [(one.name, one.comment) for one in borg.archives()] == [("one", "a comment"), ("two", "")]
    with borg.reading("one") as stream:
        assert b"".join(iter(lambda: stream.read(65536), b"")) == data
    assert len(seen) == 4 and all(isinstance(one, WarmProcess) for one in seen)
    borg.close()
    assert borg.check() == ""  # a borg of its own finds nothing wrong


def test_an_error_is_borgs_own(borg: Borg, tmp_path: Path) -> None:
    borg.create_small("one", "", b"x")
    with pytest.raises(BackupError, match="already exists"):
        borg.create_small("one", "", b"y")
    other = Borg(borg.place, b"wrong", tmp_path / "base")
    other.load_ahead()
    with pytest.raises(PassphraseError):
        other.create_small("two", "", b"x")
    other.close()


def test_a_broken_stream_leaves_no_archive(borg: Borg) -> None:
    def broken() -> Iterator[bytes]:
        yield os.urandom(1 << 20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        borg.create("half", "", broken())
    assert borg.archives() == []


def test_a_killed_server_takes_its_command_with_it(borg: Borg) -> None:
    victim = server(borg)

    def pieces() -> Iterator[bytes]:
        yield os.urandom(1 << 20)
        (child,) = children(victim)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{child}").exists())
        yield os.urandom(16 << 20)

    with pytest.raises(BackupError, match="signal 9"):
        borg.create("half", "", pieces())
    borg.create_small("next", "", b"x")  # by a borg of its own
    assert [one.name for one in borg.archives()] == ["next"]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


def test_what_fails_before_borg_is_no_warning(borg: Borg) -> None:
    # Python ends with 1 after an exception, and 1 is borg's word for a warning, after which the work is done.
    assert borg._warm is not None
    wrong: dict[str, str] = {"NAME": 1}  # type: ignore[dict-item]
    process = borg._warm.start(["list"], wrong, subprocess.DEVNULL, subprocess.DEVNULL, 0)
    assert process is not None and process.stderr is not None
    assert b"TypeError" in process.stderr.read() and process.wait() == 2
    process.stderr.close()


def test_the_passphrase_is_not_in_the_server(borg: Borg) -> None:
    borg.create_small("one", "", b"x")
    for name in ("cmdline", "environ"):
        assert b"secret" not in Path(f"/proc/{server(borg)}/{name}").read_bytes()


@pytest.mark.parametrize("first", ["", "#!/bin/sh\n", f"#!{sys.executable}\n", "\x7fELF"])
def test_a_borg_that_cannot_be_loaded_is_started_as_ever(
    borg: Borg, tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    if first:
        (directory / "borg").write_text(first)
        (directory / "borg").chmod(0o755)
    borg.close()
    borg._warm = WarmBorg(str(directory))
    seen = commands(borg)
    borg.create_small("one", "", b"x")
    assert isinstance(seen[0], subprocess.Popen)
    assert [one.name for one in borg.archives()] == ["one"]


def test_a_second_command_meanwhile_is_a_borg_of_its_own(borg: Borg) -> None:
    borg.create("one", "", iter([os.urandom(8 << 20)]))
    seen = commands(borg)
    with borg.reading("one") as first, borg.reading("one") as second:
        assert first.read(1) and second.read(1)
    assert isinstance(seen[0], WarmProcess) and isinstance(seen[1], subprocess.Popen)


def descriptors() -> set[str]:
    """Those that stay open: not that of the look itself, nor those of garbage of other tests."""
    gc.collect()
    found = os.listdir("/proc/self/fd")  # noqa: PTH208
    return {fd for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")}  # noqa: PTH110


def test_nothing_is_left(borg: Borg) -> None:
    pid, before = server(borg), descriptors()
    borg.create_small("one", "", b"x")
    with borg.reading("one") as stream:
        stream.read(1)
    assert descriptors() <= before
    borg.close()
    assert not Path(f"/proc/{pid}").exists()
