"""Keeps the figures of running qubes (memory, processor time) in the table of states up to date; sees missed ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from casemate.engine.states import States
from casemate.host.hypervisor import Hypervisor, PowerState
from casemate.wire.errors import CasemateError

log = logging.getLogger(__name__)

_SHOULD_RUN = (PowerState.RUNNING, PowerState.PAUSED, PowerState.HALTING)
"""States in which a qube has a machine. One that starts has none at first."""
REFRESH_SECONDS = 2.0
"""Seconds between two readings. One bulk call to libvirt serves all qubes, and every list that a tool asks for."""


class Figures:
    """Reads the figures in the background from ``start`` to ``close``, while any qube runs."""

    def __init__(self, hypervisor: Hypervisor, states: States, missed: Callable[[str], None]) -> None:
        """``missed`` is called with a qube that should run and whose machine does not: nobody was told of its end."""
        self._hypervisor = hypervisor
        self._missed = missed
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
                found = await self._hypervisor.list()
                self._states.set_all(found)
                off = {info.name for info in found if info.state is PowerState.HALTED}
                for name, info in list(self._states.all().items()):
                    if name in off and info.state in _SHOULD_RUN:
                        self._missed(name)
            except CasemateError as error:
                log.warning("%s", error)
