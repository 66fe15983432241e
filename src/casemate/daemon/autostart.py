"""Starts the qubes whose property ``autostart`` is set, once after each boot of the host.

The kernel gives each boot an id. The first daemon after a boot finds another id in its mark, or no mark, and starts the
qubes one after the other in the background, in order of names; a start brings the net qube up first. A daemon that
replaces another finds its own boot in the mark and starts nothing, so a qube that was shut down stays so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from casemate.host.files import replace_file
from casemate.model.system import System
from casemate.settings import Settings
from casemate.wire.errors import CasemateError

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Autostart:
    """Made by the daemon; ``begin`` once when it can start qubes, ``close`` when it ends."""

    def __init__(
        self,
        settings: Settings,
        snapshot: Callable[[], System],
        start: Callable[[str], Awaitable[None]],
        boot_id: Path = BOOT_ID,
    ) -> None:
        """``start`` starts a qube by its name; one that runs stays as it is."""
        self._mark = settings.run / "boot-id"
        self._snapshot = snapshot
        self._start = start
        self._boot_id = boot_id
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to start qubes, if this is the first time since the host booted."""
        try:
            boot = self._boot_id.read_bytes()
        except OSError as error:
            log.warning("no qube is started by itself: %s: %s", self._boot_id, error.strerror)
            return
        if self._mark.exists() and self._mark.read_bytes() == boot:
            return
        # Marked before the first start: a daemon that dies of a start must not try again and again.
        replace_file(self._mark, boot)
        names = sorted(domain.name for domain in self._snapshot().domains.values() if domain.autostart)
        if names:
            log.info("first start since the host booted: starting %s", ", ".join(names))
            self._task = asyncio.create_task(self._run(names))

    async def _run(self, names: list[str]) -> None:
        for name in names:
            try:
                await self._start(name)
            except CasemateError as error:
                log.warning("%s was not started with the host: %s", name, error)
            except Exception:
                log.exception("%s was not started with the host", name)

    async def close(self) -> None:
        """Start no more; a start that is under way is taken back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
