"""Volumes as qcow2 files in a directory; works on any file system.

``DIR/QUBE/VOLUME.qcow2`` is a volume. While its qube runs there is, beside it, ``VOLUME.run.qcow2``: the overlay of a
volume that is thrown away, a fresh volatile one, or the changes of a template's root, which others use meanwhile; those
are merged into a new file at stop, which then takes the name, so that who has the old one open keeps it.

Formats are always named, never guessed: a guest can write a qcow2 header into what it is told is raw.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.host.files import new_name
from casemate.host.process import Runner
from casemate.model.volumes import Volume
from casemate.wire.errors import CasemateError, StorageError, VolumeNotFoundError
from casemate.wire.names import qube_name, service_name

if TYPE_CHECKING:
    from casemate.storage.pool import Owner

FORMAT = "qcow2"
TOOL_SECONDS = 900.0
_FORMATTED = "private"
"""The volume that begins with a file system; others are filled by import or are used raw."""


@dataclass(frozen=True, slots=True)
class Image:
    """A file as a machine opens it; ``backing`` is what it is a layer over, ``scratch``: thrown away at the end."""

    path: Path
    format: str = FORMAT
    readonly: bool = False
    backing: tuple[tuple[Path, str], ...] = ()
    scratch: bool = False


class Qcow2Pool:
    """See ``storage.pool.Pool``. ``group`` is the group of all qubes (None: we are not root)."""

    def __init__(self, directory: Path, runner: Runner, group: int | None) -> None:
        self._directory = directory
        self._runner = runner
        self._group = group

    # -- names

    def _place(self, vid: str, suffix: str = "") -> Path:
        qube, slash, volume = vid.partition("/")
        if not slash:
            raise VolumeNotFoundError(f"{vid!r} is not the id of a volume here")
        return self._directory / qube_name(qube) / f"{service_name(volume)}{suffix}.qcow2"

    def path(self, volume: Volume) -> Path:
        """Where the volume itself lies; for one that exists only while it runs, where it will lie."""
        return self._place(volume.vid) if volume.save_on_stop else self._place(volume.vid, ".run")

    # -- tools

    async def _qemu_img(self, *arguments: str | Path) -> None:
        try:
            await self._runner.run(["qemu-img", *arguments], timeout=TOOL_SECONDS)
        except CasemateError as error:
            raise StorageError(str(error)) from error

    def _make_directory(self, path: Path) -> None:
        """The qube's directory: the pool's others may pass through, nobody may list."""
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        if self._group is not None:
            for directory in (path, self._directory, self._directory.parent):
                directory.chmod(0o711)

    def _give(self, path: Path, owner: Owner | None) -> None:
        """Make the file readable and writable for ``owner`` alone (None: for us)."""
        path.chmod(0o600)
        if self._group is not None:
            os.chown(path, owner.uid if owner else 0, owner.gid if owner else 0, follow_symlinks=False)

    def _share(self, path: Path) -> None:
        """Make the file the base of overlays: readable for all qubes of this state."""
        if self._group is not None:
            os.chown(path, 0, self._group, follow_symlinks=False)
            path.chmod(0o640)

    async def _make(self, target: Path, *arguments: str | Path, owner: Owner | None = None) -> None:
        """Run qemu-img with a fresh name in place of _TARGET, then give what it made the name ``target``."""
        self._make_directory(target.parent)
        with new_name(target) as fresh:
            await self._qemu_img(*(fresh if argument == _TARGET else argument for argument in arguments))
            self._give(fresh, owner)

    # -- the pool

    async def create(self, volume: Volume) -> None:
        """A new volume, with an empty file system where the guest expects one."""
        target = self._place(volume.vid)
        if volume.name != _FORMATTED:
            await self._make(target, "create", "-q", "-f", FORMAT, _TARGET, str(volume.size))
            return
        self._make_directory(target.parent)
        with tempfile.TemporaryDirectory(prefix=".format.", dir=target.parent) as work:
            raw = Path(work) / "raw"
            with open(raw, "xb") as file:
                file.truncate(volume.size)
            try:
                await self._runner.run(["mke2fs", *_MKE2FS, "-L", volume.name, raw], timeout=TOOL_SECONDS)
            except CasemateError as error:
                raise StorageError(str(error)) from error
            await self.import_image(volume, raw)

    async def import_image(self, volume: Volume, source: Path) -> None:
        """A new volume with the content of a raw image of ours."""
        await self._make(self._place(volume.vid), "convert", "-f", "raw", "-O", FORMAT, source, _TARGET)

    async def clone(self, source: Volume, target: Volume) -> None:
        """A copy that shares nothing."""
        await self._make(
            self._place(target.vid), "convert", "-f", FORMAT, "-O", FORMAT, self._existing(source.vid), _TARGET
        )

    def _existing(self, vid: str) -> Path:
        path = self._place(vid)
        if not path.is_file():
            raise StorageError(f"volume {vid} is missing: there is no {path}")
        return path

    async def start(self, volume: Volume, owner: Owner | None, shared: bool) -> Image:
        """The volume itself, or what stands for it while it runs."""
        run = self._place(volume.vid, ".run")
        if volume.snap_on_start:
            if volume.source is None:
                raise StorageError(f"volume {volume.vid} has nothing that it is a snapshot of")
            run.unlink(missing_ok=True)
            base = self._existing(volume.source)
            self._share(base)
            await self._overlay(run, base, owner)
            return Image(run, backing=((base, FORMAT),), scratch=True)
        if not volume.save_on_stop:
            run.unlink(missing_ok=True)
            await self._make(run, "create", "-q", "-f", FORMAT, _TARGET, str(volume.size), owner=owner)
            return Image(run, scratch=True)
        path = self._existing(volume.vid)
        if not shared:
            self._give(path, owner)
            return Image(path, readonly=not volume.rw)
        await self._merge(volume)
        self._share(path)
        await self._overlay(run, path, owner)
        return Image(run, backing=((path, FORMAT),))

    async def _overlay(self, run: Path, base: Path, owner: Owner | None) -> None:
        await self._make(run, "create", "-q", "-f", FORMAT, "-b", base, "-F", FORMAT, _TARGET, owner=owner)

    async def _merge(self, volume: Volume) -> None:
        """Make a kept volume and its changes one new file; its readers keep the old one."""
        run = self._place(volume.vid, ".run")
        if run.is_file():
            await self._make(self._place(volume.vid), "convert", "-f", FORMAT, "-O", FORMAT, run, _TARGET)
            run.unlink()

    async def stop(self, volume: Volume) -> None:
        """Throw away or merge what stood for the volume while it ran."""
        if volume.save_on_stop:
            await self._merge(volume)
            path = self._place(volume.vid)
            if path.is_file():
                self._give(path, None)
        else:
            self._place(volume.vid, ".run").unlink(missing_ok=True)

    async def remove(self, volume: Volume) -> None:
        """Remove the volume's files; with the last one the qube's directory."""
        for suffix in ("", ".run"):
            self._place(volume.vid, suffix).unlink(missing_ok=True)
        directory = self._place(volume.vid).parent
        for left in directory.glob(f".{volume.vid.partition('/')[2]}.*") if directory.is_dir() else ():
            left.unlink(missing_ok=True)
        try:
            directory.rmdir()
        except OSError:
            pass  # other volumes, or none was ever here

    async def resize(self, volume: Volume, size: int) -> None:
        """Make it larger; the guest grows its file system itself."""
        await self._qemu_img("resize", "-q", "-f", FORMAT, self._existing(volume.vid), str(size))

    async def usage(self, volume: Volume) -> int:
        """Bytes on disk of all its files."""
        total = 0
        for suffix in ("", ".run"):
            try:
                total += self._place(volume.vid, suffix).stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total


_TARGET = "\0target"
_MKE2FS = (
    "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^metadata_csum,^64bit",
    "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
)  # fmt: skip
