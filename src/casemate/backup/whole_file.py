"""Writes small files of backups so that a reader finds the old one or the new one, and nobody else can read them.

``host/files.py`` does this for the daemon. Tools, and the processes that make backups, do not import the daemon's side.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write a file, readable by our own user alone; one that is there is replaced. Its directory must exist.

    A process killed meanwhile leaves the old content or the new. OSError leaves the old.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
