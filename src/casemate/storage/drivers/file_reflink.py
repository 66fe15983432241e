"""Volumes as raw files, copied by sharing their blocks (reflink). Instant on btrfs and XFS, correct everywhere.

``DIR/QUBE/VOLUME.img`` is a volume that is kept. Beside it there may be:

- ``VOLUME.run.img``   what the machine writes: a copy of the volume or of its source, or a fresh empty volatile one
- ``VOLUME.base.img``  a second name of the source's file at the time of the start; it tells whether the source has
                       been replaced since
- ``VOLUME.live.img``  a mark: a machine writes the volume itself, and there is no saved state
- ``VOLUME@TIME.img``  an older state of the volume, whole

A start copies, a stop renames::

    start   VOLUME.img ──copy──▶ VOLUME.run.img ◀── the machine writes
    stop    VOLUME.run.img ──rename──▶ VOLUME.img, and the old VOLUME.img ──second name──▶ VOLUME@TIME.img

So a file that others read is never written, and a process killed at any instant leaves the old state or the new. Where
the file system cannot share blocks, a copy is made by copy_file_range(2), without holes: the same, but it takes time
and room. A kept volume that needs no copy, because nobody reads it and no older state is asked for, is run on directly.

A guest can write the header of another format into its disk. That is harmless here: QEMU is told ``raw``, and no tool
of the host looks at the content.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from casemate.host.files import copy_file, fsync_dir, new_name
from casemate.model.volumes import Volume
from casemate.storage.driver import DIR_PATH, EPHEMERAL_VOLATILE, REVISIONS_TO_KEEP, Driver, Opening
from casemate.storage.nbd_export import nbd_export
from casemate.storage.pool import Image, Owner
from casemate.storage.revision_names import RevisionNames
from casemate.storage.saved_state import Served, changed_layers, identity
from casemate.storage.volume_files import LIVE, VolumeFiles
from casemate.wire.errors import RevisionNotFoundError, StorageError

FORMAT = "raw"
_FORMATTED = "private"
"""The volume that begins with a file system; others are filled by import or are used raw."""
_MARKS = ("", ".run", ".base", LIVE)


class FileReflinkPool:
    """See ``storage.pool.Pool``."""

    format = FORMAT

    def __init__(self, opening: Opening) -> None:
        self._files = VolumeFiles(opening, ".img")
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One per volume: held while its file is replaced, and while it gets a second name."""

    async def room(self) -> tuple[int, int] | None:
        """Size and used bytes of the file system that the pool lies on; None while there is no such directory."""
        return await self._files.room()

    def path(self, volume: Volume) -> Path:
        """Where the volume itself lies; for one that exists only while it runs, where it will lie."""
        return self._files.path(volume.vid) if volume.save_on_stop else self._files.path(volume.vid, ".run")

    def _existing(self, vid: str) -> Path:
        path = self._files.path(vid)
        if not path.is_file():
            raise StorageError(f"volume {vid} is missing: there is no {path}")
        return path

    def has_left_overs(self, volume: Volume) -> bool:
        """True while something stands for the volume that ``stop`` would take away."""
        return any(self._files.path(volume.vid, mark).exists() for mark in _MARKS if mark)

    # -- changes of a volume that is not in use

    async def prepare(self) -> None:
        """Make the pool's directory; StorageError where it could hold no volumes."""
        await self._files.prepare()

    async def create(self, volume: Volume) -> None:
        """A new volume, with an empty file system where the guest expects one."""
        with self._replacing(volume) as fresh:
            if volume.name == _FORMATTED:
                await self._files.make_file_system(fresh, volume.size, volume.name)
            else:
                os.truncate(fresh, volume.size)

    async def import_image(self, volume: Volume, source: Path) -> None:
        """A new volume with the content of a raw image of ours; as large as the volume says, if that is more."""
        await self._replace_by_copy(volume, source, volume.size)

    def _saved(self, volume: Volume, running: bool) -> Path:
        """The file with the last saved state of a volume that a machine may have now: it writes a copy, or a mark is
        there."""
        if running and volume.rw:
            self._files.require_saved(volume.vid)
        return self._existing(volume.vid)

    async def clone(self, source: Volume, target: Volume, running: bool = False) -> None:
        """Replace ``target`` by a copy of ``source``."""
        async with self._locks[source.vid]:
            await self._replace_by_copy(target, self._saved(source, running), source.size)

    async def export(self, volume: Volume, target: Path, running: bool = False) -> None:
        """Write the volume into an empty file as a raw image."""
        async with self._locks[volume.vid]:
            source = self._saved(volume, running)
            target.unlink()  # a copy makes its file, so that it never writes into one of somebody else
            await asyncio.to_thread(copy_file, source, target)

    @asynccontextmanager
    async def serve(
        self, volume: Volume, address: Path, since: Sequence[str] = (), running: bool = False
    ) -> AsyncIterator[Served]:
        """Serve the file; which parts of it were changed by a run is not known here."""
        async with self._locks[volume.vid]:
            path = self._saved(volume, running)
            layers = (identity(path),)
            served = Served(path.stat().st_size, layers, changed_layers(layers, since))
            if served.changed == 0:
                yield served
                return
            async with nbd_export(self._files.runner, path, FORMAT, self._files.writer(path), address):
                yield served

    async def resize(self, volume: Volume, size: int) -> None:
        """Make it larger; the guest grows its file system itself."""
        path = self._existing(volume.vid)
        if size > path.stat().st_size:
            os.truncate(path, size)

    async def remove(self, volume: Volume) -> None:
        """Remove the volume's files; with the last one the qube's directory."""
        for mark in _MARKS:
            self._files.path(volume.vid, mark).unlink(missing_ok=True)
        self._older(volume).remove()
        self._locks.pop(volume.vid, None)
        self._files.remove_directory(volume.vid)

    async def usage(self, volume: Volume) -> int:
        """Bytes on disk of all its files. Blocks that files share count for each of them, as stat(2) counts them."""
        older = self._older(volume)
        files = [self._files.path(volume.vid), self._files.path(volume.vid, ".run")]
        total = 0
        for path in (*files, *map(older.path, older.all())):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    async def verify(self, volume: Volume) -> None:
        """StorageError unless the volume (or its source) is there."""
        vid = volume.source if volume.snap_on_start else volume.vid
        if vid is not None and (volume.save_on_stop or volume.snap_on_start):
            self._existing(vid)

    # -- older states

    def _older(self, volume: Volume) -> RevisionNames:
        return RevisionNames(self._files.path(volume.vid))

    def revisions(self, volume: Volume) -> list[str]:
        """The older states that the volume can go back to, oldest first."""
        older = self._older(volume)
        names = [name for name in older.all() if not older.is_current(name)]
        return names[-volume.revisions_to_keep :] if volume.revisions_to_keep > 0 else []

    async def revert(self, volume: Volume, revision: str) -> None:
        """Make a volume as it was; what it was until now becomes a revision."""
        async with self._locks[volume.vid]:
            source = self._older(volume).path(revision)
            if revision not in self.revisions(volume):
                raise RevisionNotFoundError(f"volume {volume.vid} has no older state {revision!r}")
            await self._replace_by_copy(volume, source, volume.size)

    def is_outdated(self, volume: Volume) -> bool:
        """Whether a machine runs on a state of the source that is not the newest."""
        base = self._files.path(volume.vid, ".base")
        if not volume.snap_on_start or volume.source is None or not base.exists():
            return False
        source = self._files.path(volume.source)
        return not source.exists() or not source.samefile(base)

    # -- starting and stopping

    def start_content(self, _volume: Volume) -> None:
        """This driver keeps nothing for images."""
        return

    async def keep_for_image(self, volume: Volume, _image: str) -> None:
        """StorageError: this driver keeps nothing for images."""
        raise StorageError(f"volume {volume.vid} lies in a pool that keeps nothing for warm images")

    async def copy_for_image(self, volume: Volume, _image: str) -> None:
        """StorageError: this driver keeps nothing for images."""
        raise StorageError(f"volume {volume.vid} lies in a pool that keeps nothing for forks")

    async def settle_image(self, _image: str) -> None:
        """There is none."""

    async def drop_image(self, _image: str) -> None:
        """There is none."""

    def images(self) -> list[str]:
        """None."""
        return []

    async def start(self, volume: Volume, owner: Owner | None, shared: bool, image: str | None = None) -> Image:
        """The volume itself, or the copy that the machine writes."""
        if image is not None:
            raise StorageError(f"volume {volume.vid} lies in a pool that keeps nothing for warm images")
        account = None if owner is None else (owner.uid, owner.gid)
        run = self._files.path(volume.vid, ".run")
        if volume.snap_on_start:
            if volume.source is None:
                raise StorageError(f"volume {volume.vid} has nothing that it is a snapshot of")
            base = self._files.path(volume.vid, ".base")
            async with self._locks[volume.source]:
                source = self._existing(volume.source)
                self._files.make_directory(base.parent)
                base.unlink(missing_ok=True)
                os.link(source, base, follow_symlinks=False)
            # Copied from the second name, so that the source can be replaced meanwhile and others need not wait.
            await self._copy(base, run, account)
            return Image(run, FORMAT, scratch=True)
        if not volume.save_on_stop:
            with self._files.making(run, account) as fresh:
                os.truncate(fresh, volume.size)
            return Image(run, FORMAT, scratch=True)
        async with self._locks[volume.vid]:
            self._commit(volume)
            path = self._existing(volume.vid)
            if not volume.rw or (not shared and volume.revisions_to_keep < 1):
                self._files.give(path, account)
                if volume.rw:
                    self._files.mark_live(volume.vid)
                return Image(path, FORMAT, readonly=not volume.rw)
            await self._copy(path, run, account)
        return Image(run, FORMAT)

    async def stop(self, volume: Volume) -> None:
        """Make what the machine wrote the volume, or throw it away. Also after a crash, and when it never ran."""
        if volume.save_on_stop:
            async with self._locks[volume.vid]:
                self._commit(volume)
        else:
            self._files.path(volume.vid, ".run").unlink(missing_ok=True)
            self._files.path(volume.vid, ".base").unlink(missing_ok=True)

    def _commit(self, volume: Volume) -> None:
        """Make what the machine wrote the volume. Killed at any instant, doing it again completes it."""
        path, run = self._files.path(volume.vid), self._files.path(volume.vid, ".run")
        self._files.unmark_live(volume.vid)
        if run.is_file():
            self._files.give(run, None)
            self._keep_as_revision(volume)
            run.rename(path)
            fsync_dir(path.parent)
        elif path.is_file():
            self._files.give(path, None)
        self._prune(volume)

    def _keep_as_revision(self, volume: Volume) -> None:
        """Give the volume's file a second name under which it stays when it is replaced, which must happen next."""
        path, older = self._files.path(volume.vid), self._older(volume)
        if volume.revisions_to_keep > 0 and path.is_file():
            older.drop_current()  # of an earlier attempt that was killed before it replaced the file
            os.link(path, older.path(older.next()), follow_symlinks=False)

    def _prune(self, volume: Volume) -> None:
        """Remove the oldest states until no more than are to be kept are left."""
        older = self._older(volume)
        older.drop_current()
        names = older.all()
        for name in names[: max(len(names) - max(volume.revisions_to_keep, 0), 0)]:
            older.path(name).unlink()

    # -- copies

    @contextmanager
    def _replacing(self, volume: Volume) -> Iterator[Path]:
        """A fresh empty file that becomes the volume when the block succeeds; the old one becomes a revision."""
        with self._files.making(self._files.path(volume.vid)) as fresh:
            yield fresh
            self._keep_as_revision(volume)
        self._prune(volume)

    async def _replace_by_copy(self, volume: Volume, source: Path, size: int) -> None:
        target = self._files.path(volume.vid)
        await self._copy(source, target, None, size, lambda: self._keep_as_revision(volume))
        self._prune(volume)

    async def _copy(
        self,
        source: Path,
        target: Path,
        account: tuple[int, int] | None,
        size: int = 0,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Make ``target`` a copy of at least ``size`` bytes that an account owns; ``before`` runs just before that.

        The copy runs in a thread, which cannot be ended. When the caller is cancelled we wait for the thread: a copy
        that appeared later would stand there after everything else was taken back.
        """

        def work() -> None:
            self._files.make_room(target)
            with new_name(target) as fresh:
                copy_file(source, fresh)
                if size > fresh.stat().st_size:
                    os.truncate(fresh, size)
                self._files.give(fresh, account)
                before()

        copying = asyncio.create_task(asyncio.to_thread(work))
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            await asyncio.wait({copying})
            raise
        except OSError as error:
            raise StorageError(f"{source} cannot be copied: {error.strerror}") from error


DRIVER = Driver(
    name="file-reflink",
    aliases=("file",),
    doc="Volumes as raw files in a directory, copied by sharing blocks (btrfs, XFS); elsewhere each start copies data.",
    options=(DIR_PATH, REVISIONS_TO_KEEP, EPHEMERAL_VOLATILE),
    open=FileReflinkPool,
)
