"""The file-reflink pool beyond the contract of all drivers: cancelled copies, copies that share blocks or do not."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from casemate.host import files as host_files
from casemate.host.process import Runner
from casemate.model.volumes import Volume
from casemate.storage.driver import Opening
from casemate.storage.drivers import file_reflink
from casemate.storage.drivers.file_reflink import FileReflinkPool

MIB = 1 << 20
source = Volume("root", "raw", "debian/root", 4 * MIB, rw=True, save_on_stop=True)
snapshot = Volume("root", "raw", "work/root", 4 * MIB, rw=True, snap_on_start=True, source="debian/root")


def opened(directory: Path) -> FileReflinkPool:
    return FileReflinkPool(Opening({}, directory / "pool", Runner(), None))


def files(directory: Path) -> set[str]:
    return {path.name for path in (directory / "pool").rglob("*") if path.is_file()}


def test_a_cancelled_start_waits_for_its_copy_so_that_stop_finds_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread cannot be ended: a copy that went on alone would appear after everything was taken back."""
    entered, go = threading.Event(), threading.Event()

    def slow(origin: Path, target: Path) -> None:
        entered.set()
        assert go.wait(20)
        host_files.copy_file(origin, target)

    async def scenario() -> None:
        pool = opened(tmp_path)
        await pool.create(source)
        monkeypatch.setattr(file_reflink, "copy_file", slow)
        start = asyncio.create_task(pool.start(snapshot, None, False))
        assert await asyncio.to_thread(entered.wait, 20)
        start.cancel()
        done, _pending = await asyncio.wait({start}, timeout=0.1)
        assert not done, "the copy is still being made"
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await start
        await pool.stop(snapshot)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert files(tmp_path) == {"root.img"}


def test_holes_stay_holes_and_content_is_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        pool = opened(tmp_path)
        raw = tmp_path / "image"
        with open(raw, "wb") as file:
            file.truncate(64 * MIB)
            os.pwrite(file.fileno(), b"x" * 4096, 32 * MIB)
        await pool.import_image(source, raw)
        path = pool.path(source)
        assert path.stat().st_size == 64 * MIB and path.stat().st_blocks * 512 < MIB
        with open(path, "rb") as file:
            assert os.pread(file.fileno(), 4097, 32 * MIB) == b"x" * 4096 + b"\0"

    asyncio.run(scenario())


def test_a_volume_that_nobody_reads_and_that_keeps_no_states_is_run_on_directly(tmp_path: Path) -> None:
    """No copy: on a file system that cannot share blocks it would cost as much as the volume has."""

    async def scenario() -> None:
        pool = opened(tmp_path)
        await pool.create(source)
        image = await pool.start(source, None, False)
        assert image.path == pool.path(source)
        await pool.stop(source)
        image = await pool.start(source, None, True)
        assert image.path != pool.path(source), "others read it"

    asyncio.run(scenario())
