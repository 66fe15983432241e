"""Lets a part of the daemon act after each commit to the store, whoever made it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from casemate.model.changes import Change
from casemate.store.store import Store


def after_each(store: Store, act: Callable[[], object]) -> None:
    """Have ``act`` called, in the loop that runs now, after each commit from now on."""
    loop = asyncio.get_running_loop()

    def committed(_changes: Sequence[Change]) -> None:
        # Commits are announced in the thread that made them, or that noticed another process's.
        if not loop.is_closed():
            loop.call_soon_threadsafe(act)

    store.subscribe(committed)
