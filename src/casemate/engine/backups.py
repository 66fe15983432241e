"""Backups that the daemon makes: chooses qubes, hands their volumes to the process that writes, tells how far it is.

::

    admin.backup.Execute ── Backups ── backup.profile    what, where to, which passphrase
                               |
                               ├── backup_contents.py    which qubes, the copy of the store
                               └── BackupJob             the process that writes, of one of two kinds:
                                     backup.job              one file; Volumes.export puts an image into STATE/spool
                                     backup.incremental.job  a repository; Volumes.serve lets it read over NBD

A running qube is backed up as it was before its present run. Of a run in the midst nothing could be said about what its
programs had on the disk.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from casemate.backup import profile as profiles
from casemate.backup.container import DEFAULT_COST
from casemate.backup.profile import Profile, ProfileError
from casemate.backup.sizes import readable
from casemate.engine.backup_contents import Chosen, encoded, files_of, store_copy
from casemate.engine.backup_jobs import INCREMENTAL, ONE_FILE, BackupJob, Opener
from casemate.engine.backup_places import file_place, qube_place
from casemate.engine.guests import Guests
from casemate.engine.qube_files import QubeFiles
from casemate.engine.spool import spool, spooled
from casemate.engine.states import States
from casemate.engine.volumes import is_kept
from casemate.host.hypervisor import PowerState
from casemate.host.process import Runner
from casemate.settings import Settings
from casemate.storage.nbd_export import EXPORT
from casemate.storage.saved_state import Served
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import BackupProfileNotFoundError, CasemateError, InUseError, StorageError, printable

_PASSPHRASE_SECONDS = 120.0
"""How long a qube may take to give a passphrase: a person may have to type it there."""


class Exports(Protocol):
    """What is needed of the volumes."""

    async def usage(self, name: str, volume: str) -> int:
        """Bytes that a volume takes on the disk."""

    async def export(self, name: str, volume: str, target: Path) -> None:
        """Write a volume as a raw image into an empty file; of a running qube, as it was before its start."""

    def serve(self, name: str, volume: str, address: Path, since: Sequence[str]) -> AbstractAsyncContextManager[Served]:
        """Let a volume be read over NBD; of a running qube, as it was before its start."""


_Give = Callable[[str, str, dict[str, Any]], AbstractAsyncContextManager[dict[str, object]]]
"""Makes a volume readable: qube, volume, what the process said."""


class Backups:
    """Makes the backups that profiles describe; one of each profile at a time.

    Profiles are looked for in ``directories``, in their order. The spool has one image of a backup at a time.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        states: States,
        volumes: Exports,
        files: QubeFiles,
        runner: Runner,
        guests: Guests,
        say: Callable[[ApiEvent], None],
        directories: tuple[Path, ...],
    ) -> None:
        self._settings = settings
        self._store = store
        self._states = states
        self._volumes = volumes
        self._files = files
        self._runner = runner
        self._guests = guests
        self._say = say
        self._directories = directories
        self._running: dict[str, asyncio.Task[Any]] = {}

    # -- what the Admin API asks

    async def info(self, name: str) -> str:
        """What a backup by this profile would have in it, for a person to read."""
        profile = self._profile(name)
        chosen = await self._choose(profile)
        lines = [f"{one.domain.name:<32} {one.domain.klass:<14} {readable(one.size):>10}" for one in chosen]
        for one in chosen:
            if self._states.of(one.domain.name) is not PowerState.HALTED:
                lines.append(f"{one.domain.name} is running: what is backed up is its state from before this run")
        target = profile.destination_path or "(no place given)"
        if profile.destination_vm != ADMIN:
            target = f"{profile.destination_vm}: {target}"
        total = sum(one.size for one in chosen)
        count = "1 qube" if len(chosen) == 1 else f"{len(chosen)} qubes"
        return "\n".join((*lines, f"{count}, {readable(total)} on the disk, to {target}", ""))

    async def execute(self, name: str) -> None:
        """Make the backup; returns when it is complete. Cancelled or failed, it leaves nothing that looks like one."""
        profile = self._profile(name)
        if name in self._running:
            raise InUseError(f"A backup by the profile {name} is running already")
        task = asyncio.current_task()
        assert task is not None
        self._running[name] = task
        try:
            await self._execute(name, profile)
        except asyncio.CancelledError:
            if task.cancelling() == 0:
                raise
            task.uncancel()
            raise CasemateError("The backup was cancelled") from None
        finally:
            del self._running[name]

    def cancel(self, name: str) -> None:
        """End a running backup; BackupProfileNotFoundError when there is none by this profile."""
        task = self._running.get(str(names.argument(name)))
        if task is None:
            raise BackupProfileNotFoundError(f"No backup by the profile {printable(name, 40)!r} is running")
        task.cancel()

    # -- profile and choice

    def _profile(self, name: str) -> Profile:
        return profiles.find(name, self._directories)

    async def _choose(self, profile: Profile) -> list[Chosen]:
        if profile.include is not None and ADMIN in profile.include:
            raise ProfileError(f"The home directory of this host is not part of a backup here: take {ADMIN} out")
        system = self._store.snapshot()
        known = {domain.name for domain in system.domains.ordered()}
        for word in profile.include or ():
            if word not in known and not any(mark in word for mark in "*?[:"):
                raise ProfileError(f"There is no qube {printable(word, 40)!r} to be backed up")
        chosen = []
        for domain in system.domains.ordered():
            if domain.klass in ("AdminVM", "RemoteVM"):
                continue
            included = bool(domain.include_in_backups)
            if not profile.chooses(domain.name, domain.klass, sorted(domain.tags), included):
                continue
            kept = tuple(name for name, volume in domain.volumes.items() if volume is not None and is_kept(volume))
            sizes = [await self._volumes.usage(domain.name, volume) for volume in kept]
            chosen.append(Chosen(domain, kept, sum(sizes)))
        if not chosen:
            raise ProfileError("No qube is part of this backup")
        return chosen

    async def _passphrase(self, name: str, profile: Profile) -> bytes:
        if profile.passphrase_text is not None:
            return profiles.check_passphrase(profile.passphrase_text)
        if profile.passphrase_vm is None:
            raise ProfileError(f"The profile {name} has neither passphrase_text nor passphrase_vm")
        answer = await self._guests.ask(
            str(names.qube_name(profile.passphrase_vm)), "qubes.BackupPassphrase", name, _PASSPHRASE_SECONDS
        )
        return profiles.check_passphrase(answer.decode("utf-8", "surrogateescape").rstrip("\n"))

    # -- the work

    async def _execute(self, name: str, profile: Profile) -> None:
        chosen = await self._choose(profile)
        passphrase = await self._passphrase(name, profile)
        expected = max(1, sum(one.size for one in chosen))

        def progress(count: int) -> None:
            share = min(99.9, 100 * count / expected)
            self._say(ev.BackupProgress(backup_profile=name, progress=f"{share:.1f}"))

        by_path = {one.path: one.domain.name for one in chosen}

        def opener(give: _Give) -> Opener:
            @asynccontextmanager
            async def open_volume(said: dict[str, Any]) -> AsyncIterator[dict[str, object]]:
                path, _slash, base = str(said["open"]).rpartition("/")
                qube = by_path[f"{path}/"]
                try:
                    async with give(qube, base.removesuffix(".img"), said) as answer:
                        yield answer
                except CasemateError as error:
                    raise StorageError(f"{qube}: {error}") from error

            return open_volume

        order = self._order(chosen, passphrase)
        if profile.repository:
            order |= {
                "repository": profile.destination_path, "state": str(self._settings.state / "backup"),
                "qubes": len(chosen), "keep": profile.keep.as_mapping(),
            }  # fmt: skip
            await BackupJob(self._runner, INCREMENTAL).run(order, opener(self._served), progress)
        else:
            order |= {"filter": profile.filter, "log_n": DEFAULT_COST.log_n}
            async with self._destination(profile) as target:
                await BackupJob(self._runner, ONE_FILE, target).run(order, opener(self._exported), progress)
        now = int(time.time())
        await asyncio.to_thread(self._note_time, [one.domain.name for one in chosen], now)
        self._say(ev.BackupProgress(backup_profile=name, progress="100"))

    def _order(self, chosen: list[Chosen], passphrase: bytes) -> dict[str, object]:
        """What both forms of a backup need to be told."""
        return {
            "passphrase": encoded(passphrase),
            "store": encoded(store_copy(self._store.snapshot(), {one.domain.qid: one for one in chosen})),
            "files": files_of(chosen, self._files),
        }

    @asynccontextmanager
    async def _exported(self, name: str, volume: str, _said: dict[str, Any]) -> AsyncIterator[dict[str, object]]:
        """A copy of a volume as a raw image, for a backup that is one file."""
        with spooled(self._store.path.parent, "backup") as image:
            await self._volumes.export(name, volume, image)
            yield {"path": str(image)}

    @asynccontextmanager
    async def _served(self, name: str, volume: str, said: dict[str, Any]) -> AsyncIterator[dict[str, object]]:
        """A volume over NBD, for a backup that reads only parts of it."""
        address = spool(self._store.path.parent) / f"nbd-{secrets.token_hex(8)}"
        async with self._volumes.serve(name, volume, address, [str(one) for one in said["since"]]) as served:
            yield {
                "address": str(address), "export": EXPORT, "size": served.size, "content": list(served.layers),
                "changed": served.changed,
            }  # fmt: skip

    def _destination(self, profile: Profile) -> AbstractAsyncContextManager[int]:
        if profile.destination_vm == ADMIN:
            return file_place(profile.destination_path)
        return qube_place(self._settings, self._runner, profile.destination_vm, profile.destination_path)

    def _note_time(self, chosen: list[str], now: int) -> None:
        with self._store.write() as transaction:
            for name in chosen:
                domain = transaction.system.domains.get(name)
                if domain is not None and domain.has("backup_timestamp"):
                    domain.set_text("backup_timestamp", str(now))
