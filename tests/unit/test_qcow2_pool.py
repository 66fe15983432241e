"""The qcow2 pool against the real qemu-img: what is kept, what is thrown away, what is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.host.process import Runner
from casemate.model.volumes import Volume
from casemate.storage.driver import Opening
from casemate.storage.drivers.qcow2 import Qcow2Pool
from casemate.storage.pool import Account, Image
from casemate.wire.errors import (
    CasemateError,
    StorageError,
    ValueInvalidError,
    VolumeNotFoundError,
)

MIB = 1 << 20
ROOT = os.geteuid() == 0
GROUP = 1_900_000_000 if ROOT else None
TEMPLATE = Account(1_900_000_001, 1_900_000_000) if ROOT else None
WORK = Account(1_900_000_002, 1_900_000_000) if ROOT else None

template_root = Volume("root", "default", "debian/root", 8 * MIB, rw=True, save_on_stop=True)
work_root = Volume("root", "default", "work/root", 8 * MIB, rw=True, snap_on_start=True, source="debian/root")
work_private = Volume("private", "default", "work/private", 16 * MIB, rw=True, save_on_stop=True)
work_volatile = Volume("volatile", "default", "work/volatile", 4 * MIB, rw=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the users of machines may pass through."""
    path = Path(tempfile.mkdtemp(prefix="casemate-pool-"))
    path.chmod(0o711)
    yield path / "pool"
    shutil.rmtree(path)


@pytest.fixture
def pool(place: Path) -> Qcow2Pool:
    """An empty pool."""
    return Qcow2Pool(Opening({}, place, Runner(), GROUP))


async def io(image: Path, command: str, account: Account | None) -> bytes:
    """What a machine would do to its disk: qemu-io as its user."""
    done = await Runner().run(
        ["qemu-io", "-f", "qcow2", "-c", command, image], timeout=20,
        user=account.uid if account else None, group=account.gid if account else None,
    )  # fmt: skip
    if b"failed" in done.stdout or b"failed" in done.stderr:
        raise AssertionError(done.stdout + done.stderr)
    return done.stdout


async def write(image: Image, byte: int, account: Account | None, at: str = "0") -> None:
    await io(image.path, f"write -P {byte} {at} 64k", account)


async def holds(path: Path, byte: int, at: str = "0") -> bool:
    """Whether the 64 KiB there consist of that byte."""
    return (
        b"Pattern verification failed"
        not in (
            await Runner().run(
                ["qemu-io", "-r", "-U", "-f", "qcow2", "-c", f"read -P {byte} {at} 64k", path], timeout=20, check=False
            )
        ).stdout
    )


async def imported(pool: Qcow2Pool, place: Path) -> None:
    raw = place.parent / "image.raw"
    raw.write_bytes(b"\x11" * (4 * MIB))
    await pool.import_image(template_root, raw)


def files(place: Path) -> set[str]:
    """All but the notes for backups, which are there or not."""
    found = (path for path in place.rglob("*") if not path.is_dir())
    return {str(path.relative_to(place)) for path in found if path.suffix != ".same"}


def test_imported_image_has_its_content_and_the_volumes_size(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        path = pool.path(template_root)
        assert await holds(path, 0x11)
        assert struct.unpack_from(">Q", path.read_bytes(), 24)[0] == 8 * MIB
        assert files(place) == {"debian/root.qcow2"}

    asyncio.run(scenario())


def test_private_volume_begins_with_a_file_system(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await pool.create(work_private)
        raw = place.parent / "raw"
        await Runner().run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", pool.path(work_private), raw], timeout=20
        )
        assert raw.read_bytes()[1080:1082] == b"\x53\xef"  # ext4's magic
        assert files(place) == {"work/private.qcow2"}

    asyncio.run(scenario())


def test_overlay_is_thrown_away_and_never_reaches_the_template(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        image = await pool.start(work_root, WORK, False)
        assert image.scratch and image.backing
        await write(image, 0x22, WORK)
        assert await holds(image.path, 0x22)
        await pool.stop(work_root)
        assert not image.path.exists()
        assert await holds(pool.path(template_root), 0x11)
        again = await pool.start(work_root, WORK, False)
        assert await holds(again.path, 0x11)

    asyncio.run(scenario())


def test_volatile_is_fresh_at_each_start(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        image = await pool.start(work_volatile, WORK, False)
        await write(image, 0x33, WORK)
        again = await pool.start(work_volatile, WORK, False)
        assert await holds(again.path, 0)
        await pool.stop(work_volatile)
        await pool.stop(work_volatile)
        assert files(place) == set()

    asyncio.run(scenario())


def test_private_keeps_what_was_written(pool: Qcow2Pool) -> None:
    async def scenario() -> None:
        await pool.create(work_private)
        image = await pool.start(work_private, WORK, False)
        assert image.path == pool.path(work_private) and not image.backing
        await write(image, 0x44, WORK, "8M")
        await pool.stop(work_private)
        assert await holds(pool.path(work_private), 0x44, "8M")

    asyncio.run(scenario())


def test_template_changes_show_after_its_stop_only(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        image = await pool.start(template_root, TEMPLATE, True)
        await write(image, 0x55, TEMPLATE)
        early = await pool.start(work_root, WORK, False)
        assert await holds(early.path, 0x11)
        await pool.stop(template_root)
        assert await holds(pool.path(template_root), 0x55)
        assert await holds(early.path, 0x11), "a running qube keeps the template as it was at its start"
        await pool.stop(work_root)
        late = await pool.start(work_root, WORK, False)
        assert await holds(late.path, 0x55)
        assert files(place) == {"debian/root.qcow2", "work/root.run.qcow2", "work/root.base.qcow2"}

    asyncio.run(scenario())


def test_merge_without_readers_changes_the_file_in_place(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        before = pool.path(template_root).stat().st_ino
        image = await pool.start(template_root, TEMPLATE, True)
        await write(image, 0x66, TEMPLATE)
        await pool.stop(template_root)
        assert pool.path(template_root).stat().st_ino == before
        assert await holds(pool.path(template_root), 0x66)
        assert files(place) == {"debian/root.qcow2"}

    asyncio.run(scenario())


def test_merge_that_was_cut_short_blocks_readers_until_it_is_done(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        image = await pool.start(template_root, TEMPLATE, True)
        await write(image, 0x77, TEMPLATE)
        # Killed between the rename and the end of the commit.
        image.path.rename(image.path.with_name("root.merge.qcow2"))
        fresh = Qcow2Pool(Opening({}, place, Runner(), GROUP))
        with pytest.raises(StorageError, match="half merged"):
            await fresh.start(work_root, WORK, False)
        await fresh.stop(template_root)
        assert await holds(fresh.path(template_root), 0x77)
        await fresh.start(work_root, WORK, False)

    asyncio.run(scenario())


def test_changes_of_a_crash_are_kept_at_the_next_start(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        image = await pool.start(template_root, TEMPLATE, True)
        await write(image, 0x78, TEMPLATE)
        again = await Qcow2Pool(Opening({}, place, Runner(), GROUP)).start(template_root, TEMPLATE, True)
        assert await holds(again.path, 0x78)

    asyncio.run(scenario())


def forge_backing(path: Path, target: bytes) -> None:
    """What a hijacked QEMU could do: make the header name another file."""
    with open(path, "r+b") as file:
        at = struct.unpack(">Q", file.read(16)[8:])[0]
        file.seek(16)
        file.write(struct.pack(">I", len(target)))
        file.seek(at)
        file.write(target)


def test_forged_header_is_refused_and_nothing_is_written_elsewhere(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        victim = place.parent / "victim"
        victim.write_bytes(bytes(MIB))
        image = await pool.start(template_root, TEMPLATE, True)
        await write(image, 0x99, TEMPLATE)
        forge_backing(image.path, bytes(victim))
        with pytest.raises(StorageError, match="names another file"):
            await pool.stop(template_root)
        assert victim.read_bytes() == bytes(MIB)
        assert await holds(pool.path(template_root), 0x11)

    asyncio.run(scenario())


def test_forged_header_of_a_half_merged_volume_is_refused(pool: Qcow2Pool, place: Path) -> None:
    """What a killed daemon left is checked again: its machine may have written it until then."""

    async def scenario() -> None:
        await imported(pool, place)
        victim = place.parent / "victim"
        victim.write_bytes(bytes(MIB))
        image = await pool.start(template_root, TEMPLATE, True)
        await write(image, 0x99, TEMPLATE)
        forge_backing(image.path, bytes(victim))
        image.path.rename(image.path.with_name("root.merge.qcow2"))
        with pytest.raises(StorageError, match="names another file"):
            await pool.stop(template_root)
        assert victim.read_bytes() == bytes(MIB)

    asyncio.run(scenario())


@pytest.mark.parametrize("keep", [0, 1])
def test_forged_header_of_a_volume_that_others_read_is_refused(pool: Qcow2Pool, place: Path, keep: int) -> None:
    """Then changes are copied and not merged, by another tool, which would read what the header names."""

    async def scenario() -> None:
        await imported(pool, place)
        secret, volume = place.parent / "secret", replace(template_root, revisions_to_keep=keep)
        secret.write_bytes(bytes(MIB))
        image = await pool.start(volume, TEMPLATE, True)
        await pool.start(work_root, WORK, False)
        await write(image, 0x99, TEMPLATE)
        forge_backing(image.path, bytes(secret))
        with pytest.raises(StorageError, match="names another file"):
            await pool.stop(volume)
        assert await holds(pool.path(volume), 0x11)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"QFX\xfb"), (4, struct.pack(">I", 2)), (32, struct.pack(">I", 1)), (72, struct.pack(">Q", 4))],
    ids=["magic", "version", "encryption", "data file"],
)
def test_clone_refuses_a_header_that_is_not_ours(pool: Qcow2Pool, place: Path, at: int, value: bytes) -> None:
    async def scenario() -> None:
        await pool.create(work_private)
        with open(pool.path(work_private), "r+b") as file:
            file.seek(at)
            file.write(value)
        target = replace(work_private, vid="other/private")
        with pytest.raises(StorageError):
            await pool.clone(work_private, target)
        assert not pool.path(target).exists()

    asyncio.run(scenario())


def test_clone_is_independent(pool: Qcow2Pool) -> None:
    async def scenario() -> None:
        await pool.create(work_private)
        image = await pool.start(work_private, WORK, False)
        await write(image, 0x12, WORK, "8M")
        await pool.stop(work_private)
        target = replace(work_private, vid="other/private")
        await pool.clone(work_private, target)
        await pool.remove(work_private)
        assert await holds(pool.path(target), 0x12, "8M")

    asyncio.run(scenario())


@pytest.mark.skipif(not ROOT, reason="only root hands files to other users")
def test_each_machine_owns_its_files_and_only_its_own(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        assert WORK is not None
        await imported(pool, place)
        await pool.create(work_private)
        overlay = await pool.start(work_root, WORK, False)
        private = await pool.start(work_private, WORK, False)
        for path in (overlay.path, private.path):
            assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (WORK.uid, 0o600)
        base = pool.path(template_root).stat()
        assert (base.st_uid, base.st_gid, base.st_mode & 0o777) == (0, WORK.gid, 0o640)
        with pytest.raises(CasemateError):
            await write(Image(pool.path(template_root), "qcow2"), 0x13, WORK)

    asyncio.run(scenario())


def test_remove_leaves_nothing_not_even_after_a_crash(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        await imported(pool, place)
        await pool.start(work_root, WORK, False)
        await pool.create(work_private)
        (place / "work" / ".private.qcow2.0123456789ab.new").write_bytes(b"left by a killed daemon")
        for volume in (work_root, work_private, work_volatile):
            await pool.remove(volume)
            await pool.remove(volume)
        assert not (place / "work").exists()
        assert files(place) == {"debian/root.qcow2"}

    asyncio.run(scenario())


def test_failed_import_leaves_no_file(pool: Qcow2Pool, place: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(StorageError):
            await pool.import_image(template_root, place / "no-such-image")
        assert files(place) == set()

    asyncio.run(scenario())


def test_missing_origin_is_named(pool: Qcow2Pool) -> None:
    async def scenario() -> None:
        with pytest.raises(StorageError, match="debian/root is missing"):
            await pool.start(work_root, WORK, False)
        with pytest.raises(StorageError, match="debian/root is missing"):
            await pool.verify(work_root)

    asyncio.run(scenario())


@pytest.mark.parametrize("vid", ["../x/root", "work/../../root", "/etc/passwd", "work", "work/ro\not", "-x/root", ""])
def test_ids_that_lead_out_of_the_pool_are_refused(pool: Qcow2Pool, place: Path, vid: str) -> None:
    with pytest.raises((ValueInvalidError, VolumeNotFoundError)):
        asyncio.run(pool.create(replace(work_private, vid=vid)))
    assert not place.exists() or files(place) == set()


def test_resize_grows(pool: Qcow2Pool) -> None:
    async def scenario() -> None:
        await pool.create(work_private)
        await pool.start(work_private, WORK, False)
        await pool.stop(work_private)
        await pool.resize(work_private, 32 * MIB)
        assert struct.unpack_from(">Q", pool.path(work_private).read_bytes(), 24)[0] == 32 * MIB
        assert await pool.usage(work_private) > 0

    asyncio.run(scenario())


# -- older states
