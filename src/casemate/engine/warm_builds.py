"""Makes warm images in the background: one at a time, when nobody has asked for a start just now.

::

    a qube had to boot ── on_lack ──▶ wanted, by template ──▶ one task ── a quiet moment, memory left ──▶ build()
    casemate warm build ───────────────────────────────────────────────────────────────────────────────▶ build()

    build(): a qube like the one that is wanted, marked BUILDING ── boot, warm-exec, pause, save ── it is removed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable

from casemate.engine.create import Creator
from casemate.engine.disposables import Disposables
from casemate.engine.guests import Guests
from casemate.engine.power import Power
from casemate.engine.states import States
from casemate.engine.warm_image import BUILDING, EXEC, WARM, WarmImage, is_being_made
from casemate.engine.warm_images import WarmImages
from casemate.host.hypervisor import PowerState
from casemate.model import preloading
from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire.errors import CasemateError, HypervisorError, NotFoundError, QubeError, printable

log = logging.getLogger(__name__)

QUIET_SECONDS = 3.0
"""After the last start that had to boot, until an image is made: whoever asked for that qube uses it now."""
RETRY_SECONDS = 600.0
"""After an image that could not be made, until the next attempt with that template."""
EXEC_SECONDS = 120.0
"""Limit of warm images (seconds): time that a command has that is run before an image is saved."""
_LOOK_SECONDS = 1.0
"""Between two looks at whether some qube is starting."""
_OF_THE_SHAPE = ("memory", "vcpus", "kernel", "kernelopts", "netvm", "mac")
"""Properties of an app qube that its machine is made of; the qube that becomes its image has them too."""


class WarmBuilds:
    """Owns which templates want an image, and the task that makes them."""

    def __init__(
        self,
        store: Store,
        states: States,
        power: Power,
        creator: Creator,
        disposables: Disposables,
        guests: Guests,
        images: WarmImages,
        free_memory: Callable[[], int],
    ) -> None:
        """``free_memory()``: what the host has left, in MiB."""
        self._store = store
        self._states = states
        self._power = power
        self._creator = creator
        self._disposables = disposables
        self._guests = guests
        self._images = images
        self._free_memory = free_memory
        self._wanted: dict[str, tuple[float, str, bool]] = {}
        """By template: not before this moment (monotonic); the app qube, or the disposable template; which of both."""
        self._failed: dict[str, float] = {}
        """Templates whose image could not be made: no attempt by itself before this moment."""
        self._building = asyncio.Lock()
        self._builds: dict[asyncio.Task[WarmImage], str] = {}
        """Builds that are under way, or wait for their turn, and their templates."""
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        images.on_lack = self._want

    def start(self) -> None:
        """Remove what an earlier daemon was making, then make images that are wanted, from now on."""
        self._worker = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; one that is being made is given up, and its qube removed."""
        tasks = [*self._builds, *([self._worker] if self._worker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def list(self) -> list[WarmImage]:
        """The images that there are, oldest first."""
        return self._images.list()

    async def drop(self, key: str) -> bool:
        """Remove an image; False when there is none of that key."""
        return await self._images.drop(key)

    # -- by itself

    def _want(self, domain: Domain) -> None:
        template, now = domain.template, time.monotonic()
        assert template is not None, "a qube that goes on from an image is based on one"
        if now >= self._failed.get(template.name, 0.0):
            disposable = domain.klass == "DispVM"
            like = template.name if disposable else domain.name
            self._wanted[template.name] = (now + QUIET_SECONDS, like, disposable)
            self._wake.set()

    async def _run(self) -> None:
        for domain in list(self._store.snapshot().domains.values()):
            if is_being_made(domain):
                await self._end(domain.name)
        while True:
            if not self._wanted:
                await self._wake.wait()
            self._wake.clear()
            if not self._wanted:
                continue
            template, (due, like, disposable) = min(self._wanted.items(), key=lambda one: one[1])
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
                await self.build(like, disposable)
            except CasemateError as error:
                log.warning("no warm image of %s: %s", template, printable(str(error)))
                self._failed[template] = time.monotonic() + RETRY_SECONDS
            except Exception:
                log.exception("no warm image of %s", template)
                self._failed[template] = time.monotonic() + RETRY_SECONDS

    async def give_up(self, template: str) -> None:
        """Make no image of a template, and end what was made for it: the template is being removed, or changed."""
        self._wanted.pop(template, None)
        mine = [task for task, of in self._builds.items() if of == template]
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.wait(mine)

    # -- one image

    async def build(self, name: str, disposable: bool | None = None) -> WarmImage:
        """Make the image that disposables of a disposable template, or an app qube and others like it, go on from;
        the image that is there already, where it fits. ``disposable`` says which is meant; None: what can be."""
        if why := self._images.why_not:
            raise HypervisorError(f"There can be no warm images: {why}")
        like = self._store.snapshot().domains[name]
        if disposable is None:
            disposable = bool(getattr(like, "template_for_dispvms", False))
        template = like if disposable else like.template
        if template is None:
            raise QubeError(f"{name} is based on no template, so it always boots")
        task = asyncio.create_task(self._build(like, template, disposable))
        self._builds[task] = template.name
        task.add_done_callback(lambda _task: self._builds.pop(task))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # when whoever asked has gone
        if task.cancelled():
            raise HypervisorError(f"No warm image of {template.name} was made: {template.name} is being changed")
        return task.result()

    async def _build(self, like: Domain, template: Domain, disposable: bool) -> WarmImage:
        async with self._building:
            # The guest, and its memory once more while it is written.
            if self._free_memory() < 2 * like.memory:
                raise HypervisorError(f"The host has too little memory for a warm image of {template.name}")
            features = {preloading.IN_PROGRESS: "1", preloading.INTERNAL: "1", BUILDING: "1"}
            if disposable:
                name = await self._disposables.create(like.name, features=features)
            else:
                name = await self._create_like(like, features)
            try:
                key = await self._images.key(self._store.snapshot().domains[name])
                if key is None:
                    raise HypervisorError(f"{like.name} or its disposables always boot (docs/howto/disposables.md)")
                for image in self._images.list():
                    if image.key == key:
                        return image
                begin = time.monotonic()
                await self._power.start(name)
                await self._guests.warm_up(name)
                if command := template.features.get(EXEC):
                    await self._run_before(name, command)
                await self._power.pause(name)
                image = await self._images.save(self._store.snapshot().domains[name])
                log.info("warm image %s of %s: made in %.1f s", image.key, template.name, time.monotonic() - begin)
                return image
            finally:
                await self._end(name)

    async def _create_like(self, like: Domain, features: dict[str, str]) -> str:
        """An app qube of the same template whose machine is the same, with an empty private disk."""
        assert like.template is not None, "an app qube has one"
        name = f"warm-{secrets.token_hex(6)}"
        features = features | {name: value for name, value in like.features.items() if name in ("init", WARM)}
        await self._creator.create("AppVM", name, like.label.name, like.template.name, features=features)

        def settle() -> None:
            with self._store.write() as transaction:
                mine, his = (transaction.system.domains[one] for one in (name, like.name))
                mine.set_text("include_in_backups", "False")
                for prop in _OF_THE_SHAPE:
                    if mine.text(prop) != his.text(prop):
                        mine.set_text(prop, his.text(prop))

        try:
            await asyncio.to_thread(settle)
        except BaseException:
            await self._end(name)
            raise
        return name

    async def _end(self, name: str) -> None:
        """Kill and remove a qube that was to become an image, whatever has become of it."""
        try:
            if self._states.of(name) is not PowerState.HALTED:
                await self._power.kill(name)
            await self._creator.remove(name)
        except NotFoundError:
            pass  # a disposable is removed when its machine ends
        except CasemateError as error:
            log.warning("%s, which was to become a warm image: %s", name, printable(str(error)))

    async def _run_before(self, name: str, command: str) -> None:
        """Run what the template wants in its image. It must end by itself; what it started in the background stays."""
        try:
            status = await self._guests.run(name, "qubes.VMShell", "DEFAULT", EXEC_SECONDS, f"{command}\n".encode())
        except TimeoutError:
            raise HypervisorError(f"{EXEC} of its template did not end within {EXEC_SECONDS:g} s") from None
        if status != 0:
            raise HypervisorError(f"{EXEC} of its template ended with status {status}: {printable(command, 80)}")
