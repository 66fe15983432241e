"""Finds out once, and remembers, whether KVM really runs a guest on this host."""

from __future__ import annotations

import asyncio

from casemate.host.acceleration import Acceleration, probe
from casemate.host.process import Runner
from casemate.settings import Settings
from casemate.store.store import Store
from casemate.wire.errors import StartError
from casemate.wire.names import kernel_name


class AccelerationProbe:
    """Boots the default kernel under KVM at the first question; the host keeps the answer until its next boot."""

    def __init__(self, settings: Settings, runner: Runner, store: Store) -> None:
        self._settings = settings
        self._runner = runner
        self._store = store
        self._probing = asyncio.Lock()
        self.found: Acceleration | None = None
        """The answer, None before the first question."""

    async def get(self) -> Acceleration:
        """The answer, after a probe of some seconds if need be. StartError while there is no kernel to boot."""
        async with self._probing:
            if self.found is None:
                kernel = self._store.snapshot().default_kernel
                if not kernel:
                    raise StartError("There is no kernel yet: build a template first (casemate template build)")
                directory = self._settings.state / "kernels" / kernel_name(kernel)
                self.found = await probe(self._settings, self._runner, directory / "vmlinuz", directory / "initrd")
            return self.found
