"""Keeps warm images: finds the one for a start, has one made when it was lacking, drops those of no use.

::

    start of a qube ─────── find() ──▶ an image with its key ──▶ the machine goes on from it
                              └───────▶ none: it boots, and one is made in the background

    make: a disposable boots without an identity ─▶ pause ─▶ memory, devices, layers of its disks ─▶ image.json
                                                                                               └─▶ it is ended

On disk: ``STATE/warm/KEY/`` with ``memory``, ``state`` (host/guest_memory.py) and ``image.json``; layers of disks in
their pools (``Pool.keep_for_image``). An image is complete when its directory has its name. Its key has the host's
boot in it: an image goes no further than the kernel and the processor that it was made on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.machine import TARGETS, machine_spec
from casemate.engine.warm_image import EXEC, WarmImage, is_being_made, is_wanted, key_of, mounts_later
from casemate.host import guest_memory
from casemate.host.files import free_bytes, remove_tree, replace_file
from casemate.host.hypervisor import Hypervisor
from casemate.model.domain import Domain
from casemate.model.volumes import Volume
from casemate.settings import Settings
from casemate.storage.pools import Pools
from casemate.store.store import Store
from casemate.wire.errors import CasemateError, HypervisorError, printable

log = logging.getLogger(__name__)

MOST = 8
"""Limit of warm images: images kept; the one that was not used for longest goes first."""
MOST_BYTES = 4 << 30
"""Limit of warm images (bytes): size of all images together."""
RESERVE = 1 << 30
"""Limit of warm images (bytes): room on the disk that making one must leave."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class WarmImages:
    """Owns the directory of images, and which of them are known to be whole."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hypervisor: Hypervisor,
        pools: Pools,
        acceleration: AccelerationProbe,
        controllers: Callable[[Domain], frozenset[str]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._hypervisor = hypervisor
        self._pools = pools
        self._acceleration = acceleration
        self._controllers = controllers
        self._directory = settings.state / "warm"
        self._images: dict[str, WarmImage] = {}
        self._lacking: set[str] = set()
        """Templates of which the last start found no image: those that there are are outdated, until there is a new."""
        self._host = f"{guest_memory.qemu_identity()} {_BOOT_ID.read_text().strip()}"
        self.on_lack: Callable[[Domain], None] = lambda domain: None
        """Called with a qube that has to boot because there is no image for it."""
        self.on_made: Callable[[], None] = lambda: None
        """Called when there is a new image."""

    @property
    def why_not(self) -> str:
        """Why there are no images on this host; empty where there can be."""
        if self._settings.hypervisor != "embed":
            return f"libvirt is a daemon here (CASEMATE_HYPERVISOR={self._settings.hypervisor})"
        return ""

    async def open(self, kept: Collection[str] = ()) -> None:
        """Read which images an earlier daemon has left; remove what is no image, and what is no longer one's.

        ``kept``: keys under which somebody else has layers of disks in the pools.
        """
        pools = [config.name for config in self._store.snapshot().pools.values()]
        for path in sorted(self._directory.iterdir()) if self._directory.is_dir() else []:
            try:
                image = _read(path)
                if image.template not in self._store.snapshot().domains:
                    raise ValueError("its template is gone")
                self._images[path.name] = image
            except (OSError, ValueError, KeyError, TypeError):
                remove_tree(path)
        # As numbers, which is what they are in the names of a pool: without zeros in front.
        known = {int(key, 16) for key in (*self._images, *kept)}
        for pool in pools:
            try:
                opened = self._pools.named(pool)
                for key in opened.images():
                    if int(key, 16) not in known:
                        await opened.drop_image(key)
            except CasemateError as error:
                log.warning("pool %s: %s", pool, printable(str(error)))

    def list(self) -> list[WarmImage]:
        """The images that there are, in the order of their making."""
        return sorted(self._images.values(), key=lambda image: image.made)

    def has(self, template: str) -> bool:
        """Whether a disposable template has an image, which was not outdated at the last start."""
        return template not in self._lacking and any(image.template == template for image in self._images.values())

    def are_possible(self, domain: Domain) -> bool:
        """Whether there can be images for a qube, and forks of it, on this host."""
        return not self.why_not and is_wanted(domain, self._store.snapshot().admin)

    async def key(self, domain: Domain) -> str | None:
        """The key of images for a qube; None where it must boot."""
        if not self.are_possible(domain):
            return None
        kind = (await self._acceleration.get()).kind
        disks: dict[str, str] = {}
        for name, volume in domain.volumes.items():
            if volume is None or name not in TARGETS:
                continue
            if name == "private" and mounts_later(domain):
                disks[name] = "later"
                continue
            content = self._pools.of(volume).start_content(volume)
            if content is None:
                return None
            disks[name] = f"{volume.pool}:{content}"
        spec = machine_spec(self._settings, domain, {}, kind, None, self._controllers(domain))
        try:
            command = domain.template.features.get(EXEC, "") if domain.template is not None else ""
            return key_of(spec, disks, command, self._host)
        except OSError as error:
            raise HypervisorError(f"{domain.name} has no kernel: {error}") from None

    async def find(self, domain: Domain) -> WarmImage | None:
        """The image that a qube can go on from now. Where it is lacking, ``on_lack`` is called."""
        if is_being_made(domain):
            return None
        try:
            key = await self.key(domain)
        except CasemateError as error:
            log.info("%s boots: %s", domain.name, printable(str(error)))
            return None
        if key is None:
            return None
        image = self._images.get(key)
        if image is None:
            assert domain.template is not None, "it is based on one"
            self._lacking.add(domain.template.name)
            self.on_lack(domain)
            return None
        os.utime(image.directory)
        self._images[key] = image = _read(image.directory)
        return image

    async def save(self, domain: Domain) -> WarmImage:
        """Make an image of a paused qube that was started for it; the qube is of no other use then."""
        key = await self.key(domain)
        if key is None:
            raise HypervisorError(f"{domain.name} can be no warm image")
        assert domain.template is not None, "it is based on one"
        if key in self._images:
            return self._images[key]
        if any(self._pools.of(volume).is_outdated(volume) for volume in _of_the_image(domain)):
            # Its disks are of before the change, and the key is of now: every start would find the old content.
            raise HypervisorError(f"The template of {domain.name} was changed while the image was made")
        self._make_room(domain)
        fresh, complete = self._directory / f".{key}", self._directory / key
        volumes = _of_the_image(domain)
        remove_tree(fresh)
        fresh.mkdir(mode=0o700, parents=True)
        try:
            await self._hypervisor.save_image(domain.uuid, fresh)
            for volume in volumes:
                await self._pools.of(volume).keep_for_image(volume, key)
            about = {"template": domain.template.name, "pools": sorted({volume.pool for volume in volumes})}
            replace_file(fresh / "image.json", json.dumps(about).encode())
            fresh.rename(complete)
        except BaseException as error:
            remove_tree(fresh)
            for volume in volumes:
                await self._pools.of(volume).drop_image(key)
            if isinstance(error, OSError):
                raise HypervisorError(f"The image of {domain.name} cannot be kept: {error.strerror}") from error
            raise
        self._images[key] = image = _read(complete)
        self._lacking.discard(domain.template.name)
        await self._drop_too_many(key)
        self.on_made()
        return image

    def _make_room(self, domain: Domain) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if free_bytes(self._directory) < RESERVE + (domain.memory << 20):
            raise HypervisorError(f"{self._directory} has too little room for a warm image of {domain.memory} MiB")

    async def drop(self, key: str) -> bool:
        """Remove an image; disposables that came from it run on. False when there is none of that key."""
        image = self._images.pop(key, None)
        if image is None:
            return False
        await self._hypervisor.release_image(image.directory)
        remove_tree(image.directory)
        for pool in image.pools:
            try:
                await self._pools.named(pool).drop_image(key)
            except CasemateError as error:
                log.warning("warm image %s: %s", key, printable(str(error)))
        return True

    async def _drop_too_many(self, newest: str) -> None:
        """A template has one image for each shape; a new one replaces those whose key no start asks for any more."""
        kept = sorted(self._images.values(), key=lambda image: (image.key == newest, image.used), reverse=True)
        total = 0
        for number, image in enumerate(kept):
            total += image.bytes
            if number > 0 and (number >= MOST or total > MOST_BYTES or not await self._has_use(image, newest)):
                await self.drop(image.key)

    async def _has_use(self, image: WarmImage, newest: str) -> bool:
        """Whether an image can still be found. One of the same template as a newer one may be of another shape, so it
        stays for as long as it is used."""
        template = self._store.snapshot().domains.get(image.template)
        if template is None:
            return False
        return image.template != self._images[newest].template or time.time() - image.used < _UNUSED_SECONDS


def _of_the_image(domain: Domain) -> list[Volume]:
    """The volumes whose content is a part of an image."""
    return [
        volume
        for name, volume in domain.volumes.items()
        if volume is not None and name in TARGETS and not volume.save_on_stop
    ]


_UNUSED_SECONDS = 3600.0
"""How long an image stays beside a newer one of its template after its last use."""


def _read(path: Path) -> WarmImage:
    about = json.loads((path / "image.json").read_text())
    memory, state = (path / name for name in (guest_memory.MEMORY, guest_memory.STATE))
    return WarmImage(
        key=path.name,
        directory=path,
        template=str(about["template"]),
        pools=tuple(map(str, about["pools"])),
        made=memory.stat().st_mtime,
        used=path.stat().st_mtime,
        bytes=(memory.stat().st_blocks + state.stat().st_blocks) * 512,
    )
