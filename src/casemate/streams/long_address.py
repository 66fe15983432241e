"""Reaches unix sockets whose path is longer than an address of a socket can be (107 bytes, unix(7))."""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def shortened(path: str | os.PathLike[str]) -> Iterator[str]:
    """Another name of the same socket, short enough to bind or connect to; good until the block ends."""
    parent, name = os.path.split(os.fspath(path))
    directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)
