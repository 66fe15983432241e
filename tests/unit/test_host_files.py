"""Files replaced whole, copied without holes, opened only below a directory; programs run and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from casemate.host import qemu_access
from casemate.host.files import contained_open, copy_file, name_it, new_name, remove_tree, replace_file
from casemate.host.process import Runner
from casemate.wire.errors import ToolError


def test_replace_is_whole_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old", 0o644)
    replace_file(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_failed_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), new_name(path) as fresh:
        fresh.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_copy_keeps_content_and_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as file:
        file.seek(64 << 20)
        file.write(b"middle")
        file.truncate(128 << 20)
    copy_file(source, target)
    assert target.stat().st_size == 128 << 20
    assert target.stat().st_blocks * 512 < 1 << 20
    with open(target, "rb") as file:
        file.seek(64 << 20)
        assert file.read(7) == b"middle\0"
    with pytest.raises(FileExistsError):
        copy_file(source, target)


@pytest.mark.parametrize("path", ["../outside", "link", "dir/../../outside", "/etc/passwd", "linkdir/x"])
def test_nothing_leads_out_of_the_directory(tmp_path: Path, path: str) -> None:
    inside = tmp_path / "inside"
    (inside / "dir").mkdir(parents=True)
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "x").write_text("secret")
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "linkdir").symlink_to(tmp_path)
    directory = os.open(inside, os.O_PATH)
    try:
        with pytest.raises(OSError):
            contained_open(directory, path, os.O_RDONLY)
        fd = contained_open(directory, "dir/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(fd)
    finally:
        os.close(directory)


def test_remove_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    (tmp_path / "tree").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").is_symlink()
    assert (tmp_path / "kept" / "file").exists()


def test_access_list_lets_one_more_group_in(tmp_path: Path) -> None:
    """The kernel reads the entries back as the mode bits and the list that we meant."""
    device = tmp_path / "kvm"
    device.touch(mode=0o600)
    try:
        qemu_access.allow_group(device, 12345)
    except Exception as error:
        if "not supported" in str(error):
            pytest.skip("no access lists on this file system")
        raise
    assert device.stat().st_mode & 0o777 == 0o660  # the group bits show the list's mask
    first = os.getxattr(device, "system.posix_acl_access")
    qemu_access.allow_group(device, 12345)
    assert os.getxattr(device, "system.posix_acl_access") == first
    qemu_access.allow_group(device, 54321)
    assert len(os.getxattr(device, "system.posix_acl_access")) == len(first) + 8


def run(*argv: str, **options: object) -> object:
    return asyncio.run(Runner().run(argv, **{"timeout": 20, **options}))  # type: ignore[arg-type]


def test_output_status_and_input() -> None:
    done = asyncio.run(Runner().run(["sh", "-c", "cat; echo err >&2"], input=b"in", timeout=20))
    assert (done.status, done.stdout, done.stderr) == (0, b"in", b"err\n")
    assert asyncio.run(Runner().run(["sh", "-c", "exit 3"], timeout=20, check=False)).status == 3


def test_our_environment_does_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_TEST", "leak")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    done = asyncio.run(Runner().run(["env"], timeout=20, env={"EXTRA": "1"}))
    assert b"leak" not in done.stdout
    assert b"LANG=C.UTF-8" in done.stdout and b"EXTRA=1" in done.stdout


def test_error_shows_the_program_and_its_last_words() -> None:
    with pytest.raises(ToolError) as caught:
        run("sh", "-c", "echo 'bad \x1b[31m thing' >&2; exit 7")
    text = str(caught.value)
    assert text == "sh ended with status 7:\n  bad \\x1b[31m thing"


def test_error_shows_the_cause_first_and_where_the_whole_output_is(tmp_path: Path) -> None:
    """A bootstrap's error was forty lines of our own script, and the end of its output was only the clean-up."""
    script = "echo 'E: no such suite' >&2; for i in $(seq 50); do echo \"I: cleaning up $i\" >&2; done; exit 25"
    log = tmp_path / "logs" / "sh.log"
    with pytest.raises(ToolError) as caught:
        asyncio.run(Runner().run(["sh", "-c", script], timeout=20, failure_log=log))
    assert str(caught.value) == f"sh ended with status 25:\n  E: no such suite\nThe whole output is in {log}"
    lines = log.read_text().splitlines()
    assert lines[0].startswith("$ sh -c ") and lines[1] == "E: no such suite" and lines[-1] == "I: cleaning up 50"


def test_missing_program_is_named() -> None:
    with pytest.raises(ToolError, match="no-such-program is not installed"):
        run("no-such-program")


def test_timeout_ends_all_descendants(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    begin = time.monotonic()
    with pytest.raises(ToolError, match="did not end within"):
        run("sh", "-c", f"sleep 1000 & echo $! >{mark}; wait", timeout=0.5)
    assert time.monotonic() - begin < 10
    status = Path(f"/proc/{int(mark.read_text())}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_cancelled_caller_leaves_nothing_running(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    async def scenario() -> int:
        task = asyncio.create_task(Runner().run(["sh", "-c", f"echo $$ >{mark}; exec sleep 1000"], timeout=1000))
        async with asyncio.timeout(20):
            while not mark.exists() or not mark.read_text():
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return int(mark.read_text())

    pid = asyncio.run(scenario())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_a_file_gets_a_name_that_is_free(tmp_path: Path) -> None:
    fresh, name = tmp_path / ".fresh", tmp_path / "name"
    fresh.write_bytes(b"new")
    name_it(fresh, name)
    assert name.read_bytes() == b"new" and not fresh.exists()


def test_a_name_that_is_taken_is_not_replaced(tmp_path: Path) -> None:
    fresh, name = tmp_path / ".fresh", tmp_path / "name"
    fresh.write_bytes(b"new")
    name.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        name_it(fresh, name)
    assert (name.read_bytes(), fresh.read_bytes()) == (b"old", b"new")


def test_a_name_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems of memory sticks have none."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    fresh, name = tmp_path / ".fresh", tmp_path / "name"
    fresh.write_bytes(b"new")
    name_it(fresh, name)
    assert name.read_bytes() == b"new"
