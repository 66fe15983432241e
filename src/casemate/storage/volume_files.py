"""Files of volumes in a directory: their names, who may open them, how a new one appears. Used by drivers."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from casemate.host.files import free_bytes, fsync_file, new_name, remove_tree, room
from casemate.host.process import Runner
from casemate.host.template_hooks import EXT4_OPTIONS
from casemate.storage.driver import Opening
from casemate.wire.errors import CasemateError, StorageError, VolumeNotFoundError
from casemate.wire.names import qube_name, service_name

LIVE = ".live"
"""Mark of a volume that a machine writes itself, while it does: no saved state lies below what it writes."""

TOOL_SECONDS = 900.0
"""Seconds that a program may take for one volume: 20 GiB on a disk of 25 MB/s."""
_RESERVE = 64 << 20
"""Bytes that must be left on the disk for the store and the logs when a file is made."""


class VolumeFiles:
    """``DIR/QUBE/VOLUME[MARK]EXTENSION``. Makes files and decides who may open them; knows nothing of their content.

    With ``group`` None we are not root: every file stays ours. Otherwise a file belongs to the user of the machine that
    writes it (``give``), or to root with the group of all qubes, who may then read it (``share``).
    """

    def __init__(self, opening: Opening, extension: str) -> None:
        self.directory = Path(opening.options.get("dir_path") or opening.directory)
        self._chosen = "dir_path" in opening.options
        """Whether a person chose the directory, so that it is not ours to change."""
        self.runner: Runner = opening.runner
        self._group = opening.group
        self._extension = extension

    def path(self, vid: str, mark: str = "") -> Path:
        """The path of a volume's file. VolumeNotFoundError for what is no id of a volume."""
        qube, slash, volume = vid.partition("/")
        if not slash:
            raise VolumeNotFoundError(f"{vid!r} is not the id of a volume here")
        return self.directory / qube_name(qube) / f"{service_name(volume)}{mark}{self._extension}"

    def make_directory(self, path: Path) -> None:
        """The qube's directory. Users of other qubes of the pool may pass through; nobody may list it.

        Directories that are missing are made so that users may pass through. Those that are there already may belong
        to somebody else (``dir_path=/srv/disks``): they are never changed, and StorageError names the one that is in
        the way.
        """
        own = [path] if self._chosen else [path, self.directory, self.directory.parent]
        for directory in path.parents:
            if directory.exists():
                break
            own.append(directory)
        for directory in reversed(own):
            directory.mkdir(mode=0o711, exist_ok=True)
            directory.chmod(0o711)  # whatever the umask was
        if self._group is not None:
            for directory in (self.directory, *self.directory.parents):
                if not directory.stat().st_mode & 0o001:
                    raise StorageError(
                        f"Qubes, which run as users of their own, cannot reach {path}: {directory} does not let others "
                        f"pass. Run chmod o+x {directory}, or choose another directory for the pool"
                    )

    async def prepare(self) -> None:
        """Make the directory of the pool and try it out; StorageError, with nothing left behind, where it is no use."""
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        missing = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        trial = self.directory / f".trial-{secrets.token_hex(6)}"
        try:
            self.make_directory(trial)
            (trial / "file").write_bytes(b"x")
            fsync_file(trial / "file")
        except BaseException as error:
            with suppress(OSError):  # it may not be there, and a path through a file cannot even be looked at
                remove_tree(trial)
            for path in missing:  # those that we made, the innermost first
                with suppress(OSError):
                    path.rmdir()
            if isinstance(error, OSError):
                raise StorageError(
                    f"No volumes can be kept in {self.directory}: {error.filename or self.directory}: {error.strerror}"
                ) from None
            raise
        remove_tree(trial)

    def remove_directory(self, vid: str) -> None:
        """Remove temporary files of a removed volume, and the qube's directory if it was the last one."""
        directory = self.path(vid).parent
        for left in directory.glob(f".{vid.partition('/')[2]}.*") if directory.is_dir() else ():
            remove_tree(left)
        try:
            directory.rmdir()
        except OSError:
            pass  # there are other volumes, or there never was one

    def writer(self, path: Path) -> tuple[int, int] | None:
        """The account whose machine could write a file; None when it is ours."""
        status = path.stat()
        return (status.st_uid, status.st_gid) if self._group is not None and status.st_uid != 0 else None

    def give(self, path: Path, account: tuple[int, int] | None) -> None:
        """Make the file readable and writable for an account alone (None: for us)."""
        path.chmod(0o600)
        if self._group is not None:
            os.chown(path, *(account or (0, 0)), follow_symlinks=False)

    def share(self, path: Path) -> None:
        """Make the file nobody's to write and readable for all qubes of this state: it is the base of overlays."""
        if self._group is not None:
            os.chown(path, 0, self._group, follow_symlinks=False)
            path.chmod(0o640)

    def make_room(self, target: Path) -> None:
        """Make the directory of a new file; StorageError when the disk is nearly full."""
        self.make_directory(target.parent)
        if free_bytes(target.parent) < _RESERVE:
            raise StorageError(f"No room: less than {_RESERVE >> 20} MiB are free for {target}")

    def mark_live(self, vid: str) -> None:
        """Note that a machine is given the volume's own file to write."""
        self.path(vid, LIVE).touch(mode=0o600)

    def unmark_live(self, vid: str) -> None:
        """The machine has ended, or never began."""
        self.path(vid, LIVE).unlink(missing_ok=True)

    def require_saved(self, vid: str) -> None:
        """StorageError unless a running volume has a saved state."""
        if self.path(vid, LIVE).exists():
            raise StorageError(
                f"volume {vid} keeps no older states, so the running qube writes the only one: stop the qube first, or "
                "set revisions_to_keep to 1 for its next start"
            )

    @contextmanager
    def making(self, target: Path, account: tuple[int, int] | None = None) -> Iterator[Path]:
        """A fresh empty file of an account that becomes ``target`` when the block succeeds; else nothing is left."""
        self.make_room(target)
        with new_name(target) as fresh:
            fresh.touch(mode=0o600, exist_ok=False)
            self.give(fresh, account)
            yield fresh

    async def tool(self, *argv: str | Path, account: tuple[int, int] | None = None) -> None:
        """Run a program, as an account if one is given; StorageError with what it said."""
        user, group = account if account is not None else (None, None)
        try:
            await self.runner.run(argv, timeout=TOOL_SECONDS, user=user, group=group)
        except CasemateError as error:
            raise StorageError(str(error)) from error

    async def make_file_system(self, raw: Path, size: int, label: str) -> None:
        """Make a raw file of ``size`` bytes with an empty ext4 file system, as guests expect it."""
        with open(raw, "ab") as file:
            file.truncate(size)
        await self.tool("mke2fs", *EXT4_OPTIONS, "-L", label, raw)

    async def room(self) -> tuple[int, int] | None:
        """Size and used bytes of the directory's file system; None while there is no such directory."""
        return await asyncio.to_thread(room, self.directory)
