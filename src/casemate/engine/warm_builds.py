"""Makes warm images in the background: one at a time, when nobody has asked for a start just now.

::

    a disposable had to boot ── on_lack ──▶ wanted templates ──▶ one task ── a quiet moment, memory left ──▶ build()
    casemate warm build ─────────────────────────────────────────────────────────────────────────────────▶ build()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from casemate.engine.disposables import Disposables
from casemate.engine.guests import Guests
from casemate.engine.power import Power
from casemate.engine.states import States
from casemate.engine.warm_image import BUILDING, EXEC, WarmImage
from casemate.engine.warm_images import WarmImages
from casemate.host.hypervisor import PowerState
from casemate.model import preloading
from casemate.store.store import Store
from casemate.wire.errors import CasemateError, HypervisorError, printable

log = logging.getLogger(__name__)

QUIET_SECONDS = 3.0
"""After the last start that had to boot, until an image is made: whoever asked for that qube uses it now."""
RETRY_SECONDS = 600.0
"""After an image that could not be made, until the next attempt with that template."""
EXEC_SECONDS = 120.0
"""Limit of warm images (seconds): time that a command has that is run before an image is saved."""
_LOOK_SECONDS = 1.0
"""Between two looks at whether some qube is starting."""


class WarmBuilds:
    """Owns which templates want an image, and the task that makes them."""

    def __init__(
        self,
        store: Store,
        states: States,
        power: Power,
        disposables: Disposables,
        guests: Guests,
        images: WarmImages,
        free_memory: Callable[[], int],
    ) -> None:
        """``free_memory()``: what the host has left, in MiB."""
        self._store = store
        self._states = states
        self._power = power
        self._disposables = disposables
        self._guests = guests
        self._images = images
        self._free_memory = free_memory
        self._wanted: dict[str, float] = {}
        """Templates that want an image: not before this moment (monotonic)."""
        self._failed: dict[str, float] = {}
        """Templates whose image could not be made: no attempt by itself before this moment."""
        self._building = asyncio.Lock()
        self._builds: dict[asyncio.Task[WarmImage], str] = {}
        """Builds that are under way, or wait for their turn, and their templates."""
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        images.on_lack = self._want

    def start(self) -> None:
        """Make images that are wanted, from now on."""
        self._worker = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; one that is being made is given up, and its disposable ended."""
        tasks = [*self._builds, *([self._worker] if self._worker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _want(self, template: str) -> None:
        now = time.monotonic()
        if now >= self._failed.get(template, 0.0):
            self._wanted[template] = now + QUIET_SECONDS
            self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._wanted:
                await self._wake.wait()
            self._wake.clear()
            template, due = min(self._wanted.items(), key=lambda one: one[1], default=("", 0.0))
            if not template:
                continue
            wait = due - time.monotonic()
            if wait <= 0 and PowerState.TRANSIENT in {info.state for info in self._states.all().values()}:
                wait = _LOOK_SECONDS  # two boots at once would take as long, and slow down what people wait for
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                continue
            del self._wanted[template]
            try:
                await self.build(template)
            except CasemateError as error:
                log.warning("no warm image of %s: %s", template, printable(str(error)))
                self._failed[template] = time.monotonic() + RETRY_SECONDS
            except Exception:
                log.exception("no warm image of %s", template)
                self._failed[template] = time.monotonic() + RETRY_SECONDS

    def list(self) -> list[WarmImage]:
        """The images that there are, oldest first."""
        return self._images.list()

    async def drop(self, key: str) -> bool:
        """Remove an image; False when there is none of that key."""
        return await self._images.drop(key)

    async def give_up(self, template: str) -> None:
        """Make no image of a template, and end what was made for it: the template is being removed, or changed."""
        self._wanted.pop(template, None)
        mine = [task for task, of in self._builds.items() if of == template]
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.wait(mine)

    async def build(self, template: str) -> WarmImage:
        """Boot a disposable of the template and make an image of it; the image that is there already, where it fits."""
        task = asyncio.create_task(self._build(template))
        self._builds[task] = template
        task.add_done_callback(lambda _task: self._builds.pop(task))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # when whoever asked has gone
        if task.cancelled():
            raise HypervisorError(f"No warm image of {template} was made: {template} is being changed")
        return task.result()

    async def _build(self, template: str) -> WarmImage:
        if why := self._images.why_not:
            raise HypervisorError(f"There can be no warm images: {why}")
        async with self._building:
            base = self._disposables.base(template)
            # The guest, and its memory once more while it is written.
            if self._free_memory() < 2 * base.memory:
                raise HypervisorError(f"The host has too little memory for a warm image of {template}")
            features = {preloading.IN_PROGRESS: "1", preloading.INTERNAL: "1", BUILDING: "1"}
            name = await self._disposables.create(template, features=features)
            try:
                domain = self._store.snapshot().domains[name]
                key = await self._images.key(domain)
                if key is None:
                    raise HypervisorError(f"Disposables of {template} always boot (see docs/howto/disposables.md)")
                for image in self._images.list():
                    if image.key == key:
                        return image
                begin = time.monotonic()
                await self._power.start(name)
                await self._guests.warm_up(name)
                if command := base.features.get(EXEC):
                    await self._run_before(name, command)
                await self._power.pause(name)
                image = await self._images.save(self._store.snapshot().domains[name])
                log.info("warm image %s of %s: made in %.1f s", image.key, template, time.monotonic() - begin)
                return image
            finally:
                await self._disposables.end(name)

    async def _run_before(self, name: str, command: str) -> None:
        """Run what the template wants in its image. It must end by itself; what it started in the background stays."""
        try:
            status = await self._guests.run(name, "qubes.VMShell", "DEFAULT", EXEC_SECONDS, f"{command}\n".encode())
        except TimeoutError:
            raise HypervisorError(f"{EXEC} of its template did not end within {EXEC_SECONDS:g} s") from None
        if status != 0:
            raise HypervisorError(f"{EXEC} of its template ended with status {status}: {printable(command, 80)}")
