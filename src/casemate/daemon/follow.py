"""Lets the daemon notice at once when the store's file was edited by hand or changed by another program."""

from __future__ import annotations

import asyncio
import logging

from casemate.store.store import Store
from casemate.store.watch import Watch
from casemate.wire.errors import StoreError

log = logging.getLogger(__name__)


class Follower:
    """Looks at the store when its file changes; what is new is announced as if it had been done here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watch = Watch(store.path)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._watch.fileno(), self._look)

    def _look(self) -> None:
        if self._watch.changed():
            try:
                self._store.snapshot()
            except StoreError as error:
                log.error("the store cannot be read (casemate store check, casemate store restore): %s", error)

    def close(self) -> None:
        """Stop looking."""
        self._loop.remove_reader(self._watch.fileno())
        self._watch.close()
