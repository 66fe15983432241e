"""Volumes as qcow2 files in a directory, in layers. Works on any file system.

``DIR/QUBE/VOLUME.qcow2`` is a volume that is kept. Beside it there may be:

- ``VOLUME.run.qcow2``    what its machine writes: the overlay of a volume that is thrown away, a fresh volatile one,
                          or the changes of a volume that others are based on even while it runs
- ``VOLUME.base.qcow2``   the pin: a second name (hard link) of the file below the overlay. The file stays for this
                          machine when the source is replaced, and its link count says whether anybody reads it
- ``VOLUME.below.qcow2``  the pin of the file below ``.base``, where that is a layer of a warm image or of a fork;
                          ``.below2`` and so on: the pins of those below it
- ``VOLUME.merge.qcow2``  changes that are being merged into the volume in place; until they are, nobody may read it
- ``VOLUME.live.qcow2``   a mark: a machine writes the volume itself, and there is no saved state
- ``VOLUME@TIME.qcow2``   an older state of the volume (qcow2_revisions.py)
- ``VOLUME.same``         which files show what others showed before a merge (saved_state.py)

::

    thrown away    source.qcow2 ◀── VOLUME.run.qcow2 ◀── the machine writes         stop: .run is removed
    from an image  source.qcow2 ◀── .warm-IMAGE/VOLUME.qcow2 ◀── VOLUME.run.qcow2   stop: .run is removed
    fork           what the other's .run lies over ◀── a copy of that .run ◀── VOLUME.run.qcow2      the same
    kept           VOLUME@TIME.qcow2 ◀── VOLUME.qcow2 ◀── the machine writes        stop: nothing to do
    kept, shared   VOLUME.qcow2 ◀── VOLUME.run.qcow2 ◀── the machine writes         stop: .run is merged into VOLUME
                     ◀── overlays of qubes that are based on it

Formats are always named, never guessed: a guest can write a qcow2 header into what it is told is raw. A file that a
machine could write is checked (qcow2_header.py) and then only opened by a tool that runs as that machine's user.

One file although it is long: all of its methods keep one order among the files above, in which a kill at any instant
is harmless.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from casemate.host.files import copy_file, fsync_dir, fsync_file, remove_tree
from casemate.model.volumes import Volume
from casemate.storage.driver import DIR_PATH, EPHEMERAL_VOLATILE, REVISIONS_TO_KEEP, Driver, Opening
from casemate.storage.nbd_export import nbd_export
from casemate.storage.pool import Image, Owner
from casemate.storage.qcow2_header import check_file, facts, untouched
from casemate.storage.qcow2_revisions import Revisions
from casemate.storage.saved_state import Served, changed_layers, identity
from casemate.storage.volume_files import LIVE, VolumeFiles
from casemate.wire.errors import RevisionNotFoundError, StorageError

FORMAT = "qcow2"
_FORMATTED = "private"
"""The volume that begins with a file system; others are filled by import or are used raw."""
_PINS = (".base", ".below", ".below2", ".below3", ".below4")
"""What lies below a run's layer, nearest first. A fork has one more than what it is a fork of."""
_SUFFIXES = ("", ".run", *_PINS, ".merge", LIVE)
_IMAGE = ".warm-"
"""Prefix of the directories in which layers of warm images lie. No qube's name begins with a dot."""


class Qcow2Pool:
    """See ``storage.pool.Pool``."""

    format = FORMAT

    def __init__(self, opening: Opening) -> None:
        self._files = VolumeFiles(opening, ".qcow2")
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One per volume: held while it is replaced or merged, and while somebody begins to read it."""

    async def room(self) -> tuple[int, int] | None:
        """Size and used bytes of the file system that the pool lies on; None while there is no such directory."""
        return await self._files.room()

    # -- names

    def path(self, volume: Volume) -> Path:
        """Where the volume itself lies; for one that exists only while it runs, where it will lie."""
        return self._files.path(volume.vid) if volume.save_on_stop else self._files.path(volume.vid, ".run")

    def _existing(self, vid: str) -> Path:
        path = self._files.path(vid)
        if not path.is_file():
            raise StorageError(f"volume {vid} is missing: there is no {path}")
        if self._files.path(vid, ".merge").exists():
            raise StorageError(f"volume {vid} was left half merged; it is merged when its qube is stopped again")
        return path

    # -- older states

    def _older(self, vid: str) -> Revisions:
        return Revisions(self._files.path(vid))

    def revisions(self, volume: Volume) -> list[str]:
        """The older states of a volume that it can go back to, oldest first."""
        return self._older(volume.vid).shown(volume.revisions_to_keep)

    async def revert(self, volume: Volume, revision: str) -> None:
        """Make a volume as it was; what it was until now becomes a revision. Costs as much as is in the volume."""
        async with self._locks[volume.vid]:
            older = self._older(volume.vid)
            source = older.path(revision)
            if revision not in older.shown(volume.revisions_to_keep):
                raise RevisionNotFoundError(f"volume {volume.vid} has no older state {revision!r}")
            layers, account = older.below(source), self._files.writer(source)
            with self._replacing(volume, account) as fresh:
                await self._convert(source, fresh, account, layers)
                if facts(fresh).size < volume.size:
                    await self._files.tool("qemu-img", "resize", "-q", "-f", FORMAT, fresh, str(volume.size))
            await self._prune(volume)

    def is_outdated(self, volume: Volume) -> bool:
        """Whether a machine runs on a state of the origin that is not the newest."""
        pins = self._pins(volume)
        if not volume.snap_on_start or volume.source is None or not pins:
            return False
        source = self._files.path(volume.source)
        return not source.exists() or not source.samefile(pins[-1])

    def _pins(self, volume: Volume) -> list[Path]:
        """What lies below the layer of a volume's run, nearest first."""
        return [path for mark in _PINS if (path := self._files.path(volume.vid, mark)).exists()]

    async def _freeze(self, volume: Volume, account: tuple[int, int] | None) -> None:
        """Keep the present content as a revision, before a run.

        The file gets the revision's name, and an empty layer over it becomes the volume. No data is copied. A process
        killed at any instant leaves the volume as it was, or as the layer.
        """
        path, older = self._existing(volume.vid), self._older(volume.vid)
        older.settle()
        older.below(path)
        if volume.revisions_to_keep < 1:
            return
        revision = older.path(older.next())
        with self._files.making(path, account) as fresh:
            size = str(facts(path).size)
            await self._files.tool(
                "qemu-img", "create", "-q", "-u", "-f", FORMAT, "-b", revision, "-F", FORMAT, fresh, size
            )
            os.link(path, revision, follow_symlinks=False)

    @contextmanager
    def _replacing(self, volume: Volume, account: tuple[int, int] | None = None) -> Iterator[Path]:
        """A fresh file that becomes the volume when the block succeeds; the volume until now becomes a revision."""
        path, older = self._files.path(volume.vid), self._older(volume.vid)
        with self._files.making(path, account) as fresh:
            yield fresh
            self._files.give(fresh, None)
            if volume.revisions_to_keep > 0 and path.is_file():
                older.settle()
                os.link(path, older.path(older.next()), follow_symlinks=False)

    async def _flatten(self, vid: str) -> None:
        """Make a volume one file without layers below it, so that others can be based on it."""
        path = self._existing(vid)
        older = self._older(vid)
        older.settle()
        if layers := older.below(path):
            account, before = self._files.writer(path), [identity(one) for one in (path, *layers)]
            with self._files.making(path, account) as fresh:
                await self._convert(path, fresh, account, layers)
                self._files.give(fresh, None)
            older.same.note(before, [identity(path)])

    async def _prune(self, volume: Volume) -> None:
        """Remove the oldest states until no more than are to be kept are left.

        If the next state is a layer over the oldest, its changes are written into the oldest file, which then gets its
        name. That costs as much as was changed between the two. Meanwhile a mark says that the oldest state is gone,
        because its file is neither the one nor the other.
        """
        older = self._older(volume.vid)
        older.settle()
        names = older.all()
        while len(names) > max(volume.revisions_to_keep, 0):
            oldest, mark = older.path(names[0]), older.mark(names[0])
            upper = older.path(names[1]) if len(names) > 1 else self._files.path(volume.vid)
            if older.below(upper):
                mark.touch()
                fsync_dir(mark.parent)
                account, before = self._files.writer(upper), [identity(upper), identity(oldest)]
                for file in (upper, oldest):
                    self._files.give(file, account)
                await self._files.tool("qemu-img", "commit", "-q", "-d", "-f", FORMAT, upper, account=account)
                fsync_file(oldest)
                older.same.note(before, [identity(oldest)])
                oldest.rename(upper)
            else:
                oldest.unlink()
            mark.unlink(missing_ok=True)
            fsync_dir(upper.parent)
            del names[0]

    # -- making and removing

    def has_left_overs(self, volume: Volume) -> bool:
        """True while something stands for the volume that ``stop`` would take away."""
        return any(self._files.path(volume.vid, suffix).exists() for suffix in _SUFFIXES if suffix)

    async def prepare(self) -> None:
        """Make the pool's directory; StorageError where it could hold no volumes."""
        await self._files.prepare()

    async def create(self, volume: Volume) -> None:
        """A new volume, with an empty file system where the guest expects one."""
        target = self._files.path(volume.vid)
        if volume.name != _FORMATTED:
            with self._replacing(volume) as fresh:
                await self._files.tool("qemu-img", "create", "-q", "-f", FORMAT, fresh, str(volume.size))
            return
        self._files.make_directory(target.parent)
        raw = target.with_name(f".{target.name}.{secrets.token_hex(6)}.raw")
        try:
            await self._files.make_file_system(raw, volume.size, volume.name)
            await self.import_image(volume, raw)
        finally:
            raw.unlink(missing_ok=True)

    async def import_image(self, volume: Volume, source: Path) -> None:
        """A new volume with the content of a raw image of ours; as large as the volume says, if that is more."""
        with self._replacing(volume) as fresh:
            await self._files.tool("qemu-img", "convert", "-f", "raw", "-O", FORMAT, source, fresh)
            if volume.size > source.stat().st_size:
                await self._files.tool("qemu-img", "resize", "-q", "-f", FORMAT, fresh, str(volume.size))

    def _saved(self, volume: Volume, running: bool) -> Path:
        """The file with the last saved state of a volume that a machine may have now."""
        path = self._existing(volume.vid)
        if not running or self._files.path(volume.vid, ".run").exists():
            return path  # nobody writes it: the machine writes a layer over it
        self._files.require_saved(volume.vid)
        if not volume.rw:
            return path
        older = self._older(volume.vid)
        names = older.all()
        if not names:
            raise StorageError(f"volume {volume.vid} has no saved state below what its machine writes")
        return older.path(names[-1])  # the run began by freezing the state until then under this name

    async def clone(self, source: Volume, target: Volume, running: bool = False) -> None:
        """A copy that shares nothing."""
        async with self._locks[source.vid]:
            path = self._saved(source, running)
            layers = self._older(source.vid).below(path)
            account = self._files.writer(path)
            with self._replacing(target, account) as fresh:
                await self._convert(path, fresh, account, layers)
                if facts(fresh).size < source.size:  # it was enlarged while it runs
                    await self._files.tool("qemu-img", "resize", "-q", "-f", FORMAT, fresh, str(source.size))

    async def export(self, volume: Volume, target: Path, running: bool = False) -> None:
        """Write what the volume shows into an empty file as a raw image, as the user whose machine wrote it."""
        async with self._locks[volume.vid]:
            path = self._saved(volume, running)
            account = self._files.writer(path)
            for layer in self._older(volume.vid).below(path):
                self._files.give(layer, account)
            self._files.give(target, account)
            await self._files.tool("qemu-img", "convert", "-f", FORMAT, "-O", "raw", path, target, account=account)
            self._files.give(target, None)

    @asynccontextmanager
    async def serve(
        self, volume: Volume, address: Path, since: Sequence[str] = (), running: bool = False
    ) -> AsyncIterator[Served]:
        """Serve the saved state; a layer has the clusters that a run has written."""
        async with self._locks[volume.vid]:
            path, older = self._saved(volume, running), self._older(volume.vid)
            files = [path, *older.below(path)]
            layers = tuple(map(identity, files))
            size, changed = facts(path).size, changed_layers(layers, older.same.today(since))
            if changed and facts(files[changed]).size != size:
                changed = None  # what it was enlarged by lies in no layer
            if changed == 0:
                yield Served(size, layers, changed)
                return
            account = self._files.writer(path)
            for layer in files[1:]:
                self._files.give(layer, account)
            async with nbd_export(self._files.runner, path, FORMAT, account, address):
                yield Served(size, layers, changed)

    async def _convert(
        self, source: Path, fresh: Path, account: tuple[int, int] | None, layers: Sequence[Path] = ()
    ) -> None:
        """Write what a checked file shows, layers and all, into a new one, as the user whose machine wrote it."""
        for layer in layers:
            self._files.give(layer, account)
        await self._files.tool("qemu-img", "convert", "-f", FORMAT, "-O", FORMAT, source, fresh, account=account)

    async def remove(self, volume: Volume) -> None:
        """Remove the volume's files; with the last one the qube's directory."""
        for suffix in _SUFFIXES:
            self._files.path(volume.vid, suffix).unlink(missing_ok=True)
        self._older(volume.vid).remove()
        self._locks.pop(volume.vid, None)
        self._files.remove_directory(volume.vid)

    async def resize(self, volume: Volume, size: int) -> None:
        """Make it larger; the guest grows its file system itself."""
        path = self._existing(volume.vid)
        self._older(volume.vid).below(path)
        account = self._files.writer(path)
        await self._files.tool("qemu-img", "resize", "-q", "-f", FORMAT, path, str(size), account=account)

    async def usage(self, volume: Volume) -> int:
        """Bytes on disk of all its files; what it only reads is not its own."""
        total = 0
        files = [self._files.path(volume.vid, suffix) for suffix in ("", ".run", ".merge")]
        older = self._older(volume.vid)
        for path in (*files, *map(older.path, older.all())):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    async def verify(self, volume: Volume) -> None:
        """StorageError unless the volume (or its origin) is there and is a file of ours."""
        vid = volume.source if volume.snap_on_start else volume.vid
        if vid is not None and (volume.save_on_stop or volume.snap_on_start):
            self._older(vid).below(self._existing(vid))

    # -- starting and stopping

    async def start(self, volume: Volume, owner: Owner | None, shared: bool, image: str | None = None) -> Image:
        """The volume itself, or what stands for it while it runs."""
        account = None if owner is None else (owner.uid, owner.gid)
        run = self._files.path(volume.vid, ".run")
        if image is not None:
            return await self._start_from_image(volume, image, account)
        if volume.snap_on_start:
            if volume.source is None:
                raise StorageError(f"volume {volume.vid} has nothing that it is a snapshot of")
            async with self._locks[volume.source]:
                await self._flatten(volume.source)
                pin = self._pin(self._existing(volume.source), self._files.path(volume.vid, ".base"))
            await self._overlay(run, pin, account)
            return Image(run, FORMAT, backing=((pin, FORMAT),), scratch=True)
        if not volume.save_on_stop:
            run.unlink(missing_ok=True)
            with self._files.making(run, account) as fresh:
                await self._files.tool("qemu-img", "create", "-q", "-f", FORMAT, fresh, str(volume.size))
            return Image(run, FORMAT, scratch=True)
        await self._merge(volume)
        async with self._locks[volume.vid]:
            if not shared:
                if volume.rw:
                    await self._freeze(volume, account)
                    if volume.revisions_to_keep < 1:
                        self._files.mark_live(volume.vid)
                path = self._existing(volume.vid)
                layers = self._older(volume.vid).below(path)
                for file in (path, *layers):
                    self._files.give(file, account)
                return Image(path, FORMAT, not volume.rw, tuple((one, FORMAT) for one in layers), own_layers=True)
            await self._flatten(volume.vid)
            path = self._existing(volume.vid)
            self._files.share(path)
        await self._overlay(run, path, account)
        return Image(run, FORMAT, backing=((path, FORMAT),))

    def _pin(self, base: Path, pin: Path) -> Path:
        """Give the base a second name that stays until this machine has ended."""
        self._files.make_directory(pin.parent)
        pin.unlink(missing_ok=True)
        self._files.share(base)
        os.link(base, pin, follow_symlinks=False)
        return pin

    async def _overlay(self, run: Path, base: Path, account: tuple[int, int] | None) -> None:
        run.unlink(missing_ok=True)
        with self._files.making(run, account) as fresh:
            await self._files.tool("qemu-img", "create", "-q", "-f", FORMAT, "-b", base, "-F", FORMAT, fresh)

    # -- layers of warm images

    def _of_image(self, image: str, volume: str, mark: str = "") -> Path:
        return self._files.directory / f"{_IMAGE}{int(image, 16):x}" / f"{volume}{mark}.{FORMAT}"

    def start_content(self, volume: Volume) -> str | None:
        """The source's file; the size of a volume that begins empty."""
        if volume.save_on_stop:
            return None
        if not volume.snap_on_start:
            return f"empty-{volume.size}"
        return None if volume.source is None else identity(self._existing(volume.source))

    async def keep_for_image(self, volume: Volume, image: str) -> None:
        """Give what the machine wrote, and the file below it, second names."""
        run, base = self._files.path(volume.vid, ".run"), self._files.path(volume.vid, ".base")
        check_file(run, base if volume.snap_on_start else None)
        kept = self._of_image(image, volume.name)
        self._files.make_directory(kept.parent)
        os.link(run, kept, follow_symlinks=False)
        self._files.share(kept)
        if volume.snap_on_start:
            os.link(base, self._of_image(image, volume.name, ".base"), follow_symlinks=False)

    async def copy_for_image(self, volume: Volume, image: str) -> None:
        """Copy the layer of the run; what lies below it gets second names."""
        run = self._files.path(volume.vid, ".run")
        if not run.exists():
            raise StorageError(f"volume {volume.vid} is written by its machine itself, so it cannot be forked")
        below = [self._files.path(volume.vid)] if volume.save_on_stop else self._pins(volume)
        if len(below) >= len(_PINS):
            raise StorageError(f"volume {volume.vid} is a fork of forks already: {len(_PINS)} layers are the most")
        kept = self._of_image(image, volume.name)
        self._files.make_directory(kept.parent)
        await asyncio.to_thread(copy_file, run, kept, durable=False)  # the machine stands still meanwhile
        check_file(kept, below[0] if below else None)
        self._files.share(kept)
        for mark, path in zip(_PINS, below, strict=False):
            self._files.share(path)
            os.link(path, self._of_image(image, volume.name, mark), follow_symlinks=False)

    async def _start_from_image(self, volume: Volume, image: str, account: tuple[int, int] | None) -> Image:
        """A layer over the image's layer. All below it are pinned, so that the image can be dropped meanwhile."""
        run = self._files.path(volume.vid, ".run")
        kept = self._of_image(image, volume.name)
        if volume.save_on_stop or not kept.exists():
            raise StorageError(f"volume {volume.vid} cannot begin from the warm image {image}")
        self._files.make_directory(run.parent)
        pins = []
        for mark, name in zip(("", *_PINS), _PINS, strict=False):
            source, pin = self._of_image(image, volume.name, mark), self._files.path(volume.vid, name)
            pin.unlink(missing_ok=True)
            if source.exists():
                os.link(source, pin, follow_symlinks=False)
                pins.append((pin, FORMAT))
        if volume.snap_on_start and len(pins) < 2:
            raise StorageError(f"volume {volume.vid}: the warm image {image} lacks what its layer lies over")
        run.unlink(missing_ok=True)
        with self._files.making(run, account) as fresh:
            # Without a look at what is below (-u): a tool would follow the names in the files, which are of others.
            await self._files.tool(
                "qemu-img", "create", "-q", "-u", "-f", FORMAT, "-b", pins[0][0], "-F", FORMAT,
                fresh, str(facts(kept).size),
            )  # fmt: skip
        return Image(run, FORMAT, backing=tuple(pins), scratch=True)

    async def settle_image(self, image: str) -> None:
        """The copies, and the names of all layers."""
        directory = self._of_image(image, "").parent
        try:
            for path in directory.iterdir():
                await asyncio.to_thread(fsync_file, path)
            fsync_dir(directory)
        except OSError as error:
            raise StorageError(f"The layers of image {image} cannot be written out: {error.strerror}") from error

    async def drop_image(self, image: str) -> None:
        """Remove the image's names of its layers."""
        remove_tree(self._of_image(image, "").parent)

    def images(self) -> list[str]:
        """From the names of directories."""
        return sorted(path.name.removeprefix(_IMAGE) for path in self._files.directory.glob(f"{_IMAGE}*"))

    async def stop(self, volume: Volume) -> None:
        """Throw away or merge what stood for the volume while it ran. Also after a crash, and when it never ran."""
        if volume.save_on_stop:
            await self._merge(volume)
            self._files.unmark_live(volume.vid)
            async with self._locks[volume.vid]:
                if self._files.path(volume.vid).is_file():
                    await self._prune(volume)
        else:
            for suffix in (".run", *_PINS):
                self._files.path(volume.vid, suffix).unlink(missing_ok=True)

    async def _merge(self, volume: Volume) -> None:
        """Put the changes of a run (``.run``) into the kept volume.

        While others read the volume, or when its state is to be kept, both are copied into a new file, and the old one
        stays under its other names. Else the changes are written into the volume, which costs as much as was changed.
        If the process is killed at any instant, calling this again completes it.
        """
        vid = volume.vid
        path, run, merge = self._files.path(vid), self._files.path(vid, ".run"), self._files.path(vid, ".merge")
        async with self._locks[vid]:
            if merge.is_file():
                await self._commit(merge, path)
            if not run.is_file():
                return
            check_file(run, path)
            older = self._older(vid)
            older.settle()
            if untouched(run) and facts(run).size == facts(path).size:  # not enlarged while it ran either
                run.unlink()
            elif path.stat().st_nlink > 1 or volume.revisions_to_keep > 0:
                account = self._files.writer(run)
                self._files.share(path)  # the tool runs as that account
                with self._files.making(path, account) as fresh:
                    await self._convert(run, fresh, account)
                    self._files.give(fresh, None)
                    if volume.revisions_to_keep > 0:
                        os.link(path, older.path(older.next()), follow_symlinks=False)
                run.unlink()
            else:
                run.rename(merge)
                fsync_dir(merge.parent)
                await self._commit(merge, path)

    async def _commit(self, merge: Path, path: Path) -> None:
        check_file(merge, path)
        account = self._files.writer(merge)
        self._files.give(path, account)
        try:
            await self._files.tool("qemu-img", "commit", "-q", "-d", "-f", FORMAT, merge, account=account)
            fsync_file(path)
        finally:
            self._files.give(path, None)
        merge.unlink()
        fsync_dir(path.parent)


DRIVER = Driver(
    name="qcow2",
    doc="Volumes as qcow2 files in a directory, in layers. Works on any file system; the driver of the default pool.",
    options=(DIR_PATH, REVISIONS_TO_KEEP, EPHEMERAL_VOLATILE),
    open=Qcow2Pool,
)
