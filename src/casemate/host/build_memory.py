"""Room in memory for a build's temporary files, given back also after the builder was killed.

A bootstrap unpacks hundreds of megabytes. Its program removes them when it is told to end; when the daemon is killed
nobody tells it, it ends at its next line of output, and what it leaves would fill memory until the host boots.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from casemate.host.files import free_bytes
from casemate.host.process import Runner
from casemate.wire.errors import ToolError

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # noqa: S108  # the names in it are random, and nobody's but ours are taken
_REMOVE_SECONDS = 120.0
_HIGH = 64


@asynccontextmanager
async def memory_directory(
    runner: Runner, needed: int, memory: Path = MEMORY
) -> AsyncIterator[tuple[Path, int] | None]:
    """A directory of this user's in memory, and a descriptor of it, until the block ends; None where fewer than
    ``needed`` bytes are free.

    Programs that write there inherit the descriptor. It holds a lock as long as any of them lives, so that what is
    left of a builder that was killed is known, and removed by the next.
    """
    await _sweep(runner, memory)
    try:
        if free_bytes(memory) < needed:
            yield None
            return
        path = Path(tempfile.mkdtemp(prefix=_prefix(), dir=memory))
    except OSError:
        yield None
        return
    fd = _high(_locked(path))
    try:
        path.chmod(0o711)  # a bootstrap without root works as another user, who must get through
        yield None if fd is None else (path, fd)
    finally:
        await _remove(runner, path)
        if fd is not None:
            os.close(fd)


def _prefix() -> str:
    return f"casemate-build-{os.geteuid()}-"


def _locked(path: Path) -> int | None:
    """A descriptor that locks a directory of ours; None where it is another's, or somebody has the lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise BlockingIOError
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _high(fd: int | None) -> int | None:
    """The same file under a number that no program asks for. mmdebstrap has a shell write to a descriptor that it
    opens, and Debian's shell knows none above 9: so the low ones are to be left free."""
    if fd is None:
        return None
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    finally:
        os.close(fd)


async def _sweep(runner: Runner, memory: Path) -> None:
    """Remove what killed builders have left."""
    for path in memory.glob(f"{_prefix()}*"):
        fd = _locked(path)
        if fd is not None:
            try:
                log.info("removing %s, which a build that was killed has left", path)
                await _remove(runner, path)
            finally:
                os.close(fd)


def _mounted_below(path: Path) -> bool:
    """Whether this process's mount namespace has a mount below ``path`` (proc(5), mountinfo, fifth field)."""
    begin = f"{path}/"
    return any(line.split(" ")[4].startswith(begin) for line in Path("/proc/self/mountinfo").read_text().splitlines())


async def _remove(runner: Runner, path: Path) -> None:
    """Remove a directory of ours. One below which something is mounted is left alone: that is the host's own, and a
    mount of this very file system would be emptied too by whoever goes down into it."""
    if _mounted_below(path):
        log.warning("%s is left: something is mounted below it", path)
        return
    try:
        path.rmdir()  # as a rule it is empty
        return
    except OSError:
        pass
    # What a bootstrap without root has made belongs to its subordinate ids.
    helper = [] if os.geteuid() == 0 else ["mmdebstrap", "--unshare-helper"]
    try:
        await runner.run(
            [*helper, "rm", "-rf", "--one-file-system", "--", *path.iterdir()], timeout=_REMOVE_SECONDS
        )  # fmt: skip
        path.rmdir()
    except (OSError, ToolError) as error:
        log.warning("%s is left: %s", path, error)
