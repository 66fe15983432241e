"""The contract of a storage driver, on every driver that this host has: ours, and those that entry points name.

Whoever writes a driver installs his package into this checkout's ``.venv`` (its entry point in group
``casemate.storage`` is enough) and runs this file. It uses QEMU's own tools as a machine would use a disk.

One file although it is long: whoever writes a driver runs one file.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.host.process import Runner
from casemate.model.volumes import Volume
from casemate.storage.driver import Driver, Opening
from casemate.storage.drivers import load
from casemate.storage.pool import Account, Image, Pool
from casemate.wire.errors import CasemateError, RevisionNotFoundError, StorageError, ValueInvalidError

MIB = 1 << 20
ROOT = os.geteuid() == 0
GROUP = 1_900_000_000 if ROOT else None
TEMPLATE = Account(1_900_000_001, 1_900_000_000) if ROOT else None
WORK = Account(1_900_000_002, 1_900_000_000) if ROOT else None

template_root = Volume("root", "default", "debian/root", 8 * MIB, rw=True, save_on_stop=True)
work_root = Volume("root", "default", "work/root", 8 * MIB, rw=True, snap_on_start=True, source="debian/root")
mail_root = replace(work_root, vid="mail/root")
private = Volume("private", "default", "work/private", 16 * MIB, rw=True, save_on_stop=True)
volatile = Volume("volatile", "default", "work/volatile", 4 * MIB, rw=True)

DRIVERS = {driver.name: driver for driver in load().values()}


class Rig:
    """A pool of one driver in a directory of its own; ``open`` gives it again as a restarted daemon has it."""

    def __init__(self, driver: Driver, directory: Path) -> None:
        self.driver = driver
        self.directory = directory
        self.pool = self.open()

    def open(self) -> Pool:
        return self.driver.open(Opening({}, self.directory / "pool", Runner(), GROUP))

    async def imported(self, byte: int = 0x11, volume: Volume = template_root, size: int = 4 * MIB) -> None:
        raw = self.directory / "image.raw"
        raw.write_bytes(bytes([byte]) * size)
        await self.pool.import_image(volume, raw)

    def files(self) -> list[str]:
        return sorted(str(path) for path in self.directory.joinpath("pool").rglob("*") if not path.is_dir())


async def io(image: Image, command: str, account: Account | None) -> bytes:
    """What a machine does to its disk: qemu-io as the machine's user, with formats and layers as the pool says."""
    readonly = ("-r",) if image.readonly else ()
    disk: dict[str, object] | None = None
    for path, image_format in reversed([(image.path, image.format), *image.backing]):
        below: dict[str, object] = {"backing": disk} if image_format == "qcow2" else {}
        disk = {"driver": image_format, "file": {"driver": "file", "filename": str(path)}} | below
    done = await Runner().run(
        ["qemu-io", *readonly, "-c", command, f"json:{json.dumps(disk)}"], timeout=60, check=False,
        user=account.uid if account else None, group=account.gid if account else None,
    )  # fmt: skip
    return done.stdout + done.stderr


async def write(image: Image, byte: int, account: Account | None = WORK, at: int = 0) -> None:
    assert b"wrote 65536" in await io(image, f"write -P {byte} {at} 64k", account)


async def shows(image: Image, byte: int, account: Account | None = WORK, at: int = 0) -> bool:
    """Whether the 64 KiB there consist of that byte."""
    said = await io(image, f"read -P {byte} {at} 64k", account)
    assert b"read 65536" in said, said
    return b"verification failed" not in said


async def once(pool: Pool, volume: Volume, work: Callable[[Image], Awaitable[object]], shared: bool = False) -> object:
    """One run of a machine."""
    image = await pool.start(volume, WORK, shared)
    try:
        return await work(image)
    finally:
        await pool.stop(volume)


@pytest.fixture(params=sorted(DRIVERS))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A directory that the users of machines may pass through."""
    path = Path(tempfile.mkdtemp(prefix="casemate-driver-"))
    path.chmod(0o711)
    yield Rig(DRIVERS[request.param], path)
    shutil.rmtree(path)


# -- the declaration


def test_the_declaration_is_complete(rig: Rig) -> None:
    driver = rig.driver
    assert driver.doc.endswith(".") and len(driver.doc) < 120
    assert load()[driver.name] is driver and all(load()[alias] is driver for alias in driver.aliases)
    for option in driver.options:
        assert option.doc.endswith(".")
        if option.default:
            option.check(option.default)
    with pytest.raises(ValueInvalidError, match="no option 'colour'"):
        driver.check({"colour": "red"})
    with pytest.raises(ValueInvalidError, match="not printable"):
        driver.check({driver.options[0].name: "\x1b"})
    assert rig.pool.format in ("qcow2", "raw")


# -- what is kept


def test_a_new_private_volume_has_a_file_system_and_keeps_what_is_written(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.pool.create(private)
        image = await rig.pool.start(private, WORK, False)
        # The superblock's magic number, 0xEF53, at byte 56 of the superblock, which is at byte 1024.
        assert b"53 ef" in await io(image, "read -v 1080 512", WORK)
        await write(image, 0x22, at=8 * MIB)
        await rig.pool.stop(private)
        assert await once(rig.pool, private, lambda image: shows(image, 0x22, at=8 * MIB))

    asyncio.run(scenario())


def test_an_imported_image_has_its_content_and_at_least_the_volumes_size(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        image = await rig.pool.start(template_root, WORK, False)
        assert await shows(image, 0x11) and await shows(image, 0x00, at=8 * MIB - 65536)
        await rig.pool.stop(template_root)
        await rig.pool.verify(template_root)
        assert await rig.pool.usage(template_root) >= 4 * MIB

    asyncio.run(scenario())


def test_a_failed_import_changes_nothing(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        before = rig.files()
        with pytest.raises(CasemateError):
            await rig.pool.import_image(template_root, rig.directory / "missing.raw")
        assert rig.files() == before
        assert await once(rig.pool, template_root, lambda image: shows(image, 0x11))

    asyncio.run(scenario())


def test_a_clone_shares_nothing_with_its_origin(rig: Rig) -> None:
    async def scenario() -> None:
        copy = replace(private, vid="mail/private")
        await rig.imported(0x33, private)
        await rig.pool.clone(private, copy)
        assert await once(rig.pool, copy, lambda image: shows(image, 0x33))
        await once(rig.pool, copy, lambda image: write(image, 0x44))
        assert await once(rig.pool, private, lambda image: shows(image, 0x33))
        await rig.pool.remove(private)
        assert await once(rig.pool, copy, lambda image: shows(image, 0x44))

    asyncio.run(scenario())


def test_an_exported_volume_is_a_raw_image_that_can_be_imported(rig: Rig) -> None:
    """So a clone crosses from one pool to another, whatever their drivers are."""

    async def scenario() -> None:
        copy = replace(private, vid="mail/private")
        await rig.imported(0x33, private)
        raw = rig.directory / "exported.raw"
        raw.touch(mode=0o600)
        await rig.pool.export(private, raw)
        assert raw.read_bytes()[:65536] == bytes([0x33]) * 65536
        assert raw.stat().st_size == 16 * MIB
        assert raw.stat().st_uid == os.geteuid()
        await rig.pool.import_image(copy, raw)
        assert await once(rig.pool, copy, lambda image: shows(image, 0x33))

    asyncio.run(scenario())


def test_a_resized_volume_is_larger_and_keeps_its_content(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported(0x33, private)
        await rig.pool.resize(private, 32 * MIB)
        image = await rig.pool.start(replace(private, size=32 * MIB), WORK, False)
        assert await shows(image, 0x33)
        await write(image, 0x55, at=32 * MIB - 65536)
        await rig.pool.stop(private)

    asyncio.run(scenario())


# -- what is thrown away


def test_a_snapshot_begins_with_the_source_and_is_thrown_away(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        one = await rig.pool.start(work_root, WORK, False)
        other = await rig.pool.start(mail_root, TEMPLATE, False)
        assert one.scratch
        await write(one, 0x22)
        assert await shows(other, 0x11, TEMPLATE), "two snapshots of one source are apart"
        assert rig.pool.has_left_overs(work_root)
        await rig.pool.stop(work_root)
        await rig.pool.stop(mail_root)
        assert not rig.pool.has_left_overs(work_root)
        assert await once(rig.pool, work_root, lambda image: shows(image, 0x11))

    asyncio.run(scenario())


def test_a_volatile_volume_is_empty_at_each_start(rig: Rig) -> None:
    async def scenario() -> None:
        await once(rig.pool, volatile, lambda image: write(image, 0x22))
        assert await once(rig.pool, volatile, lambda image: shows(image, 0x00))
        assert rig.files() == []

    asyncio.run(scenario())


def test_readers_see_nothing_of_a_running_source_until_it_has_stopped(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        early = await rig.pool.start(work_root, WORK, False)
        template = await rig.pool.start(template_root, TEMPLATE, True)
        await write(template, 0x22, TEMPLATE)
        late = await rig.pool.start(mail_root, WORK, False)
        assert await shows(early, 0x11) and await shows(late, 0x11)
        assert not rig.pool.is_outdated(work_root)
        await rig.pool.stop(template_root)
        assert rig.pool.is_outdated(work_root) and rig.pool.is_outdated(mail_root)
        assert await shows(early, 0x11), "a running reader keeps what it started with"
        await rig.pool.stop(work_root)
        assert await once(rig.pool, work_root, lambda image: shows(image, 0x22))
        assert not rig.pool.is_outdated(work_root)
        await rig.pool.stop(mail_root)

    asyncio.run(scenario())


# -- older states


@pytest.mark.parametrize("shared", [False, True])
def test_older_states_are_kept_counted_and_gone_back_to(rig: Rig, shared: bool) -> None:
    kept = replace(private, revisions_to_keep=2)

    async def scenario() -> None:
        await rig.imported(0x01, kept)
        for byte in (0x02, 0x03, 0x04):
            await once(rig.pool, kept, lambda image, byte=byte: write(image, byte), shared)  # type: ignore[misc]
        names = rig.pool.revisions(kept)
        assert len(names) == 2 and names == sorted(names)
        await rig.pool.revert(kept, names[0])
        assert await once(rig.pool, kept, lambda image: shows(image, 0x02), shared)
        assert len(rig.pool.revisions(kept)) <= 2
        for wrong in ("20000101-000000", "../../etc/passwd", ""):
            with pytest.raises(RevisionNotFoundError):
                await rig.pool.revert(kept, wrong)

    asyncio.run(scenario())


def test_a_state_gone_back_from_can_be_gone_back_to(rig: Rig) -> None:
    kept = replace(private, revisions_to_keep=3)

    async def scenario() -> None:
        await rig.imported(0x01, kept)
        await once(rig.pool, kept, lambda image: write(image, 0x02))
        await rig.pool.revert(kept, rig.pool.revisions(kept)[0])
        await rig.pool.revert(kept, rig.pool.revisions(kept)[-1])
        assert await once(rig.pool, kept, lambda image: shows(image, 0x02))

    asyncio.run(scenario())


# -- crashes and ends


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_written_survives_a_daemon_that_dies(rig: Rig, shared: bool) -> None:
    async def scenario() -> None:
        await rig.imported(0x01, private)
        image = await rig.pool.start(private, WORK, shared)
        await write(image, 0x02)
        await rig.open().stop(private)  # another daemon clears up after the machine has ended
        assert await once(rig.pool, private, lambda image: shows(image, 0x02))

    asyncio.run(scenario())


def test_a_start_after_a_start_that_never_stopped(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        await write(await rig.pool.start(work_root, WORK, False), 0x22)
        assert await shows(await rig.open().start(work_root, WORK, False), 0x11)
        await rig.pool.stop(work_root)

    asyncio.run(scenario())


def test_stop_and_remove_are_idempotent_and_leave_nothing(rig: Rig) -> None:
    async def scenario() -> None:
        volumes = (private, work_root, volatile, replace(template_root, revisions_to_keep=2))
        for volume in volumes:
            await rig.pool.stop(volume)
        await rig.imported()
        await rig.pool.create(private)
        for volume in volumes:
            await rig.pool.start(volume, WORK, False)
        for volume in volumes:
            for _ in range(2):
                await rig.pool.stop(volume)
            for _ in range(2):
                await rig.pool.remove(volume)
        assert rig.files() == []

    asyncio.run(scenario())


def test_a_missing_volume_is_an_error_that_names_it(rig: Rig) -> None:
    async def scenario() -> None:
        for work in (rig.pool.verify(private), rig.pool.start(private, WORK, False), rig.pool.resize(private, 1 << 30)):
            with pytest.raises(StorageError, match="work/private"):
                await work
        with pytest.raises(StorageError, match="debian/root"):
            await rig.pool.start(work_root, WORK, False)
        for wrong in ("work", "../work/private", "work/../private"):
            with pytest.raises(CasemateError):
                await rig.pool.create(replace(private, vid=wrong))

    asyncio.run(scenario())


def test_a_pool_tells_its_room(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.pool.create(private)
        room = await rig.pool.room()
        assert room is None or 0 < room[1] <= room[0]

    asyncio.run(scenario())


def test_a_running_volume_is_copied_as_it_was_at_its_start(rig: Rig) -> None:
    """Its last saved state: for one that others are based on as well, and by another pool too. Never what its machine
    is writing; where nothing is saved, that is said."""

    async def scenario() -> None:
        copy = replace(private, vid="copy/private")
        raw = rig.directory / "exported"
        for shared, keep in ((False, 1), (True, 0), (True, 1)):
            source = replace(private, revisions_to_keep=keep)
            await rig.imported(0x22, source, source.size)
            image = await rig.pool.start(source, WORK, shared)
            try:
                await write(image, 0x33)
                await rig.pool.clone(source, copy, running=True)
                raw.touch()
                await rig.pool.export(source, raw, running=True)
                assert raw.read_bytes()[:65536] == b"\x22" * 65536
                raw.unlink()
                assert await shows(image, 0x33)
            finally:
                await rig.pool.stop(source)
            assert await once(rig.pool, copy, lambda image: shows(image, 0x22))
            assert await once(rig.pool, source, lambda image: shows(image, 0x33))
            await rig.pool.remove(source)
        # The only state there is belongs to the machine.
        source = replace(private, revisions_to_keep=0)
        await rig.imported(0x44, source, source.size)
        await rig.pool.start(source, WORK, False)
        assert rig.open().has_left_overs(source)
        for pool in (rig.pool, rig.open()):
            with pytest.raises(StorageError, match="keeps no older states"):
                await pool.clone(source, copy, running=True)
        await rig.pool.stop(source)
        assert not rig.pool.has_left_overs(source)
        await rig.pool.clone(source, copy)
        assert await once(rig.pool, copy, lambda image: shows(image, 0x44))
        # As large as the volume is now, though its saved state is not.
        await rig.pool.clone(replace(source, size=source.size + 4 * MIB), copy)
        assert await once(rig.pool, copy, lambda image: shows(image, 0, at=source.size + 3 * MIB))

    asyncio.run(scenario())


@pytest.mark.parametrize("driver", [one for one in DRIVERS.values() if any(o.name == "dir_path" for o in one.options)])
def test_a_directory_that_is_no_use_is_found_when_the_pool_is_added(driver: Driver) -> None:
    """And nothing is left of the attempt. A directory that will do is there afterwards, empty."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    try:
        (place / "file").touch()
        (place / "closed").mkdir(mode=0o700)

        def prepare(path: Path | str) -> None:
            pool = driver.open(Opening({"dir_path": str(path)}, place / "unused", Runner(), GROUP))
            asyncio.run(pool.prepare())

        wrong: list[Path | str] = [place / "file", place / "file/pool", "/proc/casemate/pool"]
        wrong += [place / "closed/a/pool"] if ROOT else []  # users of qubes cannot pass through
        for path in wrong:
            with pytest.raises(StorageError, match=str(path)):
                prepare(path)
        assert sorted(path.name for path in place.rglob("*")) == ["closed", "file"]
        prepare(place / "a/pool")
        prepare(place / "a/pool")
        assert list((place / "a/pool").iterdir()) == []
    finally:
        shutil.rmtree(place)


# -- layers of warm images


IMAGE = "0123456789abcdef"


def test_a_volume_begins_with_what_was_kept_for_an_image(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        if rig.pool.start_content(work_root) is None:
            with pytest.raises(StorageError, match="keeps nothing for warm images"):
                await rig.pool.keep_for_image(work_root, IMAGE)
            with pytest.raises(StorageError, match="keeps nothing for warm images"):
                await rig.pool.start(work_root, WORK, False, IMAGE)
            return
        for volume in (work_root, volatile):
            image = await rig.pool.start(volume, WORK, False)
            await write(image, 0x22, at=65536)
            await rig.pool.keep_for_image(volume, IMAGE)
            await rig.pool.stop(volume)
        assert [int(name, 16) for name in rig.pool.images()] == [int(IMAGE, 16)]
        for volume in (mail_root, replace(volatile, vid="mail/volatile")):
            image = await rig.pool.start(volume, WORK, False, IMAGE)
            assert await shows(image, 0x22, at=65536)
            if volume is mail_root:
                assert await shows(image, 0x11), "below it is the source"
                assert not rig.pool.is_outdated(volume)
            await write(image, 0x33, at=65536)
            # The image may go while machines run that came from it.
            if volume is mail_root:
                again = await rig.pool.start(replace(mail_root, vid="third/root"), WORK, False, IMAGE)
                assert await shows(again, 0x22, at=65536), "nobody sees what another has written"
                await rig.pool.stop(replace(mail_root, vid="third/root"))
        await rig.pool.drop_image(IMAGE)
        await rig.pool.drop_image(IMAGE)
        assert rig.pool.images() == []
        assert await shows(image, 0x33, at=65536)
        with pytest.raises(StorageError, match="cannot begin from the warm image"):
            await rig.pool.start(replace(mail_root, vid="third/root"), WORK, False, IMAGE)
        for volume in (mail_root, replace(volatile, vid="mail/volatile"), replace(mail_root, vid="third/root")):
            await rig.pool.stop(volume)
            assert not rig.pool.has_left_overs(volume)

    asyncio.run(scenario())


def test_the_layer_of_a_machine_that_goes_on_is_copied_for_forks(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        image = await rig.pool.start(work_root, WORK, False)
        if rig.pool.start_content(work_root) is None:
            with pytest.raises(StorageError, match="keeps nothing for forks"):
                await rig.pool.copy_for_image(work_root, IMAGE)
            return
        await write(image, 0x22, at=65536)
        await rig.pool.copy_for_image(work_root, IMAGE)
        await write(image, 0x55, at=65536)  # it goes on
        below, volume = image, work_root
        for depth in range(1, 5):
            # A fork of the fork of ... each has one more layer below it, until they are too many.
            name = f"{IMAGE[:-1]}{depth}"
            fork = replace(mail_root, vid=f"fork{depth}/root")
            below = await rig.pool.start(fork, WORK, False, IMAGE if depth == 1 else f"{IMAGE[:-1]}{depth - 1}")
            assert await shows(below, 0x22, at=65536) and await shows(below, 0x11)
            assert not rig.pool.is_outdated(fork)
            assert len(below.backing) == depth + 1
            if depth < 4:
                await rig.pool.copy_for_image(fork, name)
            volume = fork
        with pytest.raises(StorageError, match="fork of forks"):
            await rig.pool.copy_for_image(volume, "aa")
        for name in rig.pool.images():
            await rig.pool.drop_image(name)
        assert await shows(below, 0x22, at=65536) and await shows(image, 0x55, at=65536)
        for volume in (work_root, *(replace(mail_root, vid=f"fork{depth}/root") for depth in range(1, 5))):
            await rig.pool.stop(volume)
            assert not rig.pool.has_left_overs(volume)

    asyncio.run(scenario())


def test_what_a_machine_writes_itself_cannot_be_copied_while_it_goes_on(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.pool.create(private)
        await rig.pool.start(private, WORK, False)
        with pytest.raises(StorageError, match="fork"):
            await rig.pool.copy_for_image(private, IMAGE)
        assert rig.pool.images() == []
        await rig.pool.stop(private)

    asyncio.run(scenario())


def test_what_a_start_begins_with_changes_when_its_source_does(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.imported()
        before = rig.pool.start_content(work_root)
        assert rig.pool.start_content(mail_root) == before and rig.pool.start_content(template_root) is None
        await rig.imported(0x44)
        if before is not None:
            assert rig.pool.start_content(work_root) != before
            assert rig.pool.start_content(volatile) != rig.pool.start_content(replace(volatile, size=8 * MIB))

    asyncio.run(scenario())


def test_a_layer_whose_header_was_changed_becomes_no_part_of_an_image(rig: Rig) -> None:
    """A guest that has broken out could name any file of the host there, and every disposable would open it."""

    async def scenario() -> None:
        await rig.imported()
        if rig.pool.start_content(work_root) is None:
            return
        image = await rig.pool.start(work_root, WORK, False)
        content = image.path.read_bytes()
        image.path.write_bytes(content.replace(b"root.base.qcow2", b"hostile.x.qcow2"))
        with pytest.raises(StorageError, match="names another file"):
            await rig.pool.keep_for_image(work_root, IMAGE)
        assert rig.pool.images() == []
        with pytest.raises(StorageError, match="names another file"):
            await rig.pool.copy_for_image(work_root, IMAGE)
        await rig.pool.drop_image(IMAGE)
        await rig.pool.stop(work_root)

    asyncio.run(scenario())
