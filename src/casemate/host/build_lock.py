"""One builder of a thing at a time, and a result that is there whole or not at all."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from casemate.host.files import fsync_dir, remove_tree

_STALE_SUFFIX = ".building"


@asynccontextmanager
async def build_lock(target: Path, progress: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the lock of one result; wait for another process that builds the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting: another process builds {target.name}")
            await asyncio.to_thread(fcntl.flock, fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def build_directory(target: Path, base: Path | None = None) -> Iterator[Path]:
    """A fresh directory to build in, beside the result or in ``base``; removed at the end. Call under the lock:
    directories that killed builders of the same result left are removed first."""
    prefix = f".{target.name}."
    for left in target.parent.glob(f"{prefix}*{_STALE_SUFFIX}"):
        remove_tree(left)
    work = (base or target.parent) / f"{prefix}{secrets.token_hex(4)}{_STALE_SUFFIX}"
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        remove_tree(work)
        fsync_dir(target.parent)
