"""The store in this process: for scripts that stand where QubesVmCollection stood."""

from __future__ import annotations

import os
from pathlib import Path

from casemate.settings import load
from casemate.store.lock import DEFAULT_TIMEOUT
from casemate.store.store import Store


def open_store(path: str | os.PathLike[str] | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> Store:
    """The collection of qubes on disk, without the daemon. ``path`` None is the file of the state that tools take.

    ::

        with casemate.open_store().write() as t:
            t.system.domains["work"].tags.add("reviewed")
            t.save()                         # on the disk now; the lock is still held
            t.system.domains["work"].features["reviewed-by"] = "me"
        # what was changed since the last save is saved here, or dropped where the block raised

    ``snapshot()`` reads without a lock, ``read()`` while nobody may change the file, ``write()`` while nobody else may
    read it under a lock or change it. ``timeout`` is how many seconds each waits for the lock (LockTimeoutError names
    who holds it). A daemon that runs takes over what was changed here and tells its clients by events.

    The store only knows what qubes are: it starts nothing, and makes or removes no volumes. To create and remove qubes
    use `Qubes`, which does both. Needs lxml.
    """
    return Store(load().store_file if path is None else Path(path), timeout=timeout)
