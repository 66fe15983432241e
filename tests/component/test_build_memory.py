"""Room in memory for builds: taken, given back, and taken from builders that were killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.host.build_memory import memory_directory
from casemate.host.process import PACKAGE_PATH, Runner
from tests.builders import wait_for

KILLED = """
import asyncio, subprocess, sys
from pathlib import Path
from casemate.host.build_memory import memory_directory
from casemate.host.process import Runner

async def main():
    async with memory_directory(Runner(), 1, Path(sys.argv[1])) as found:
        path, fd = found
        (path / "chroot").mkdir()
        (path / "chroot/file").write_bytes(b"x")
        subprocess.Popen(["sleep", "300"], pass_fds=[fd])
        print("ready", flush=True)
        await asyncio.sleep(300)

asyncio.run(main())
"""


async def used(memory: Path, needed: int = 1) -> list[str]:
    """Take room once; the names that were there meanwhile."""
    async with memory_directory(Runner(), needed, memory) as found:
        if found is not None:
            (found[0] / "sub").mkdir()
            (found[0] / "sub" / "file").write_bytes(b"x")
        return sorted(path.name for path in memory.iterdir())


def test_room_is_given_back(tmp_path: Path) -> None:
    [name] = asyncio.run(used(tmp_path))
    assert name.startswith(f"casemate-build-{os.geteuid()}-") and not list(tmp_path.iterdir())
    assert asyncio.run(used(tmp_path, needed=1 << 60)) == []


def test_programs_find_the_low_descriptors_free(tmp_path: Path) -> None:
    """Debian's shell writes to none above 9, and mmdebstrap has one write to what it opened after ours."""

    async def work() -> str:
        async with memory_directory(Runner(), 1, tmp_path) as found:
            assert found is not None
            script = "import os; print(max(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) < 64))"
            done = await Runner().run([sys.executable, "-S", "-c", script], timeout=60, pass_fds=(found[1],))
            assert found[1] >= 64
            return done.stdout.decode().strip()

    assert int(asyncio.run(work())) <= 3


def test_what_a_killed_builder_left_is_removed_when_its_programs_have_gone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PATH},
    ) as builder:  # fmt: skip
        try:
            assert builder.stdout is not None and builder.stdout.readline() == b"ready\n"
            builder.kill()
            builder.wait()
            [left] = list(tmp_path.iterdir())
            assert left.name in asyncio.run(used(tmp_path)) and (left / "chroot/file").exists(), "its program works on"
        finally:
            os.killpg(builder.pid, signal.SIGKILL)
    wait_for(lambda: left.name not in asyncio.run(used(tmp_path)), 20)
    assert not list(tmp_path.iterdir())


def test_only_directories_of_ours_are_taken(tmp_path: Path) -> None:
    prefix = f"casemate-build-{os.geteuid()}-"
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / f"{prefix}link").symlink_to(outside)
    (memory / f"{prefix}file").write_text("")
    (memory / "another").mkdir()
    (memory / f"{prefix}open").mkdir()
    (memory / f"{prefix}open").chmod(0o777)  # somebody else may have put something into it
    asyncio.run(used(memory))
    assert (outside / "kept").exists()
    assert {path.name for path in memory.iterdir()} == {f"{prefix}link", f"{prefix}file", "another", f"{prefix}open"}


MOUNTED = """
import asyncio, os, subprocess, sys
from pathlib import Path
from casemate.host.build_memory import memory_directory
from casemate.host.process import Runner

memory, outside = Path(sys.argv[1]), Path(sys.argv[2])
inside = memory / f"casemate-build-{os.geteuid()}-left" / "chroot"
inside.mkdir(parents=True)
subprocess.run(["mount", "--bind", outside, inside], check=True)

async def main():
    async with memory_directory(Runner(), 1, memory):
        pass

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_what_is_mounted_below_is_never_emptied(tmp_path: Path) -> None:
    """A bind mount of the same file system cannot be told from a directory by its device."""
    memory, outside = tmp_path / "memory", tmp_path / "outside"
    memory.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("x")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-P", "-c", MOUNTED, memory, outside],
        env={**os.environ, "PYTHONPATH": PACKAGE_PATH}, check=False, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (outside / "kept").exists() and len(list(memory.iterdir())) == 1
    asyncio.run(used(memory))
    assert not list(memory.iterdir()), "it goes when nothing is mounted any more"
