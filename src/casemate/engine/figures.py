"""Keeps the figures of running qubes (memory, processor time) up to date in the table of states."""

from __future__ import annotations

import asyncio
import logging

from casemate.engine.states import States
from casemate.host.hypervisor import Hypervisor
from casemate.wire.errors import CasemateError

log = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0
"""Seconds between two readings. One bulk call to libvirt serves all qubes, and every list that a tool asks for."""


class Figures:
    """Reads the figures in the background from ``start`` to ``close``, while any qube runs."""

    def __init__(self, hypervisor: Hypervisor, states: States) -> None:
        self._hypervisor = hypervisor
        self._states = states
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if not self._states.all():
                continue
            try:
                self._states.set_all(await self._hypervisor.list())
            except CasemateError as error:
                log.warning("%s", error)
