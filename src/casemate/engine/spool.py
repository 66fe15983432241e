"""STATE/spool: images on their way between a volume and something else. Emptied at each start of the daemon."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.host.files import remove_tree


def spool(state: Path) -> Path:
    """The directory, made when it is first needed. Users of qubes pass through to an image that is theirs to read or
    write, whatever the umask; nobody but us can list it, and no name in it is a secret."""
    directory = state / "spool"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o711)
    return directory


@contextmanager
def spooled(state: Path, kind: str) -> Iterator[Path]:
    """An empty file of ours, which is removed at the end of the block. ``kind`` tells in its name what it is for."""
    image = spool(state) / f"{kind}-{secrets.token_hex(8)}"
    try:
        image.touch(mode=0o600, exist_ok=False)
        yield image
    finally:
        image.unlink(missing_ok=True)


def clear(state: Path) -> None:
    """Remove what a daemon that was killed had not finished."""
    remove_tree(state / "spool")
