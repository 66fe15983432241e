"""The spool of images, and the file that a backup goes to."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from casemate.engine.backup_places import file_place
from casemate.engine.spool import clear, spooled
from casemate.wire.errors import StorageError


def test_qubes_pass_through_the_spool_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with spooled(tmp_path, "test") as image:
            assert stat.S_IMODE(image.parent.stat().st_mode) == 0o711
            assert stat.S_IMODE(image.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_an_image_goes_with_its_block_and_all_at_a_start(tmp_path: Path) -> None:
    with pytest.raises(KeyError), spooled(tmp_path, "test") as image:
        raise KeyError
    assert not image.exists()
    image.write_bytes(b"left by a daemon that was killed")
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_backup_appears_when_it_is_complete(tmp_path: Path) -> None:
    async def write() -> None:
        async with file_place(str(tmp_path / "backup")) as fd:
            os.write(fd, b"all of it")
            assert not (tmp_path / "backup").exists()

    asyncio.run(write())
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]
    assert (tmp_path / "backup").read_bytes() == b"all of it"


def test_a_backup_replaces_nothing_that_came_to_be_meanwhile(tmp_path: Path) -> None:
    async def write() -> None:
        async with file_place(str(tmp_path / "backup")) as fd:
            os.write(fd, b"all of it")
            (tmp_path / "backup").write_bytes(b"of somebody else")

    with pytest.raises(StorageError, match="is there already"):
        asyncio.run(write())
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]
    assert (tmp_path / "backup").read_bytes() == b"of somebody else"
