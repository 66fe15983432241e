"""Where a backup goes: a file of this host, or a service of a qube. Each gives a descriptor to write to."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from casemate.backup.profile import ProfileError
from casemate.host.files import name_it
from casemate.host.process import PACKAGE_PATH, Runner, what_went_wrong
from casemate.settings import Settings
from casemate.wire.errors import StorageError

SERVICE = "qubes.Backup"
"""What takes a backup in a qube: a line with the place, then the backup. (upstream's service of that name)"""
_TOOL = (sys.executable, "-P", "-m", "casemate.cli", "qvm-run", "--pass-io", "--no-gui", "--service", "--")
_STORED_SECONDS = 600.0
"""How long a qube may take to store what it has got, after the last byte was sent."""
_SAID = 16384


@asynccontextmanager
async def file_place(place: str) -> AsyncIterator[int]:
    """A descriptor of a new file. It appears under its name when it is complete, or not at all.

    ``place`` is the file, or a directory, in which it gets a name with the time. ProfileError, StorageError.
    """
    path = _path(place)
    partial = path.with_name(f".{path.name}.partial")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise StorageError(
            f"{partial} is there: another backup writes to it, or was killed. If none is running, remove it"
        ) from None
    except OSError as error:
        raise StorageError(f"{partial}: {error.strerror}") from None
    try:
        yield fd
        try:
            name_it(partial, path)
        except OSError as error:
            what = "is there already" if isinstance(error, FileExistsError) else f"cannot be made: {error.strerror}"
            raise StorageError(f"{path} {what}") from None
    finally:
        os.close(fd)
        partial.unlink(missing_ok=True)


def _path(place: str) -> Path:
    if not place.startswith("/"):
        raise ProfileError("destination_path must be an absolute path")
    path = Path(place)
    if path.is_dir():
        return path / f"qubes-backup-{time.strftime('%Y-%m-%dT%H%M%S')}"
    if os.path.lexists(path):
        raise StorageError(f"{path} is there already")
    if not path.parent.is_dir():
        raise StorageError(f"There is no directory {path.parent}")
    return path


@asynccontextmanager
async def qube_place(settings: Settings, runner: Runner, qube: str, place: str) -> AsyncIterator[int]:
    """A descriptor whose bytes go to the qube's service, which is told the place first. The qube is started if need be.

    An error at that end is ours: StorageError with what the service said.
    """
    if "\n" in place or not place:
        raise ProfileError("destination_path must be one line: a directory or a command in the qube")
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        process = await runner.spawn(
            [*_TOOL, qube, SERVICE],
            env={**settings.environment(), "PYTHONPATH": PACKAGE_PATH},
            stdin=reading,
            stderr=asyncio.subprocess.PIPE,
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    assert process.stderr is not None
    said = asyncio.create_task(_said(process.stderr))
    failed = False
    try:
        os.write(writing, place.encode("utf-8", "surrogateescape") + b"\n")
        yield writing
    except StorageError:
        failed = True  # most likely because the other end has gone: what it said is the better reason
        os.close(writing)
        writing = -1
        status = await _status(process)
        if status == 0:
            raise
    except BaseException:
        process.terminate()
        raise
    finally:
        if writing >= 0:
            os.close(writing)
        if not failed:
            status = await _status(process)
        text = await said
    if status != 0:
        why = what_went_wrong(text).strip() or f"{SERVICE} ended with status {status}"
        raise StorageError(f"{qube} did not take the backup: {why}")


async def _status(process: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(_STORED_SECONDS):
            return await asyncio.shield(process.wait())
    except TimeoutError:
        process.kill()
        await asyncio.shield(process.wait())
        raise StorageError("the qube does not say whether it has stored the backup") from None


async def _said(stream: asyncio.StreamReader) -> bytes:
    """The beginning of what a program says; the rest is read too, so that it never waits for us."""
    data = b""
    while more := await stream.read(4096):
        data += more[: _SAID - len(data)]
    return data
