"""Backups that the daemon makes: chooses the qubes, hands their files to the process that writes, tells how far it is.

::

    admin.backup.Execute ── Backups ── backup.profile    what, where to, which passphrase
                               |
                               ├── Volumes.export        a volume as a raw image, one at a time, in STATE/spool
                               └── backup.job            the process that compresses, encrypts and writes

A running qube is backed up as it was before its present run. Of a run in the midst nothing could be said about what its
programs had on the disk.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lxml import etree

from casemate.backup import profile as profiles
from casemate.backup.container import DEFAULT_COST
from casemate.backup.profile import Profile, ProfileError
from casemate.engine.backup_places import file_place, qube_place
from casemate.engine.guests import Guests
from casemate.engine.qube_files import QubeFiles
from casemate.engine.spool import spooled
from casemate.engine.states import States
from casemate.engine.volumes import is_kept
from casemate.host.hypervisor import PowerState
from casemate.host.process import PACKAGE_PATH, Runner
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.settings import Settings
from casemate.store import writer
from casemate.store.store import Store
from casemate.wire import events as ev
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import BackupProfileNotFoundError, CasemateError, InUseError, StorageError, printable

_JOB = (sys.executable, "-P", "-m", "casemate.backup.job")
_PASSPHRASE_SECONDS = 120.0
STALL_SECONDS = 900.0
"""How long nothing may come out of the writing process before it is given up: its reader takes nothing any more."""
_STOP_SECONDS = 10.0


class Exports(Protocol):
    """What is needed of the volumes."""

    async def usage(self, name: str, volume: str) -> int:
        """Bytes that a volume takes on the disk."""

    async def export(self, name: str, volume: str, target: Path) -> None:
        """Write a volume as a raw image into an empty file; of a running qube, as it was before its start."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A qube of the backup, its kept volumes, and the bytes that these take."""

    domain: Domain
    volumes: tuple[str, ...]
    size: int

    @property
    def path(self) -> str:
        """What the names of its files begin with."""
        return f"vm{self.domain.qid}/"


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
        lines = [f"{one.domain.name:<32} {one.domain.klass:<14} {_size(one.size):>10}" for one in chosen]
        for one in chosen:
            if self._states.of(one.domain.name) is not PowerState.HALTED:
                lines.append(f"{one.domain.name} is running: what is backed up is its state from before this run")
        target = profile.destination_path or "(no place given)"
        if profile.destination_vm != ADMIN:
            target = f"{profile.destination_vm}: {target}"
        total = sum(one.size for one in chosen)
        return "\n".join((*lines, f"{len(chosen)} qubes, {_size(total)} on the disk, to {target}", ""))

    async def execute(self, name: str) -> None:
        """Make the backup; returns when it is complete. Cancelled or failed, it leaves nothing."""
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
        names.argument(name)
        for directory in self._directories:
            path = directory / f"{name}.conf"
            try:
                with open(path, "rb") as file:
                    return profiles.parse(file.read(profiles.MAX_SIZE + 1), str(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ProfileError(f"{path}: {error.strerror}") from None
        raise BackupProfileNotFoundError(f"There is no backup profile {name!r} in {self._directories[0]}")

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

        order = self._order(chosen, passphrase, profile.filter)
        async with self._destination(profile) as target:
            await self._write(order, {one.path: one for one in chosen}, target, progress)
        now = int(time.time())
        await asyncio.to_thread(self._note_time, [one.domain.name for one in chosen], now)
        self._say(ev.BackupProgress(backup_profile=name, progress="100"))

    def _order(self, chosen: list[Chosen], passphrase: bytes, packed: str) -> dict[str, object]:
        files: list[dict[str, str]] = []
        for one in chosen:
            files += [{"name": f"{one.path}{volume}.img"} for volume in one.volumes]
            small = self._files.stored(one.domain.uuid)
            if not one.volumes and not small:
                small = {"empty": b""}  # a qube without any file would look lost
            files += [{"name": one.path + name, "data": _encoded(data)} for name, data in small.items()]
        return {
            "passphrase": _encoded(passphrase),
            "filter": packed,
            "log_n": DEFAULT_COST.log_n,
            "store": _encoded(_store_copy(self._store.snapshot(), {one.domain.qid: one for one in chosen})),
            "files": files,
        }

    async def _write(
        self, order: dict[str, object], by_path: dict[str, Chosen], target: int, progress: Callable[[int], None]
    ) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await self._runner.spawn(
            [*_JOB, str(target)],
            env={"PYTHONPATH": PACKAGE_PATH},
            pass_fds=[target],
            stdin=pipe,
            stdout=pipe,
        )
        assert process.stdin is not None and process.stdout is not None
        images = ExitStack()  # one at a time is in it
        try:
            await _send(process.stdin, order)
            while line := await self._next(process.stdout):
                said = json.loads(line)
                if "open" in said:
                    image = images.enter_context(spooled(self._store.path.parent, "backup"))
                    await _send(process.stdin, await self._export(said["open"], by_path, image))
                elif "close" in said:
                    images.close()
                elif "progress" in said:
                    progress(said["progress"])
                elif "error" in said:
                    raise StorageError(f"The backup was not written: {printable(said['error'], 400)}")
                elif "done" in said:
                    return
            raise StorageError(
                "The backup was not written: the process that writes it ended; the daemon's log may say why"
            )
        finally:
            images.close()
            process.stdin.close()
            await _ended(process)

    async def _next(self, stream: asyncio.StreamReader) -> bytes:
        try:
            return await asyncio.wait_for(stream.readline(), STALL_SECONDS)
        except TimeoutError:
            raise StorageError(f"The backup was given up: nothing of it was taken for {STALL_SECONDS:g} s") from None

    async def _export(self, file: str, by_path: dict[str, Chosen], image: Path) -> dict[str, str]:
        path, _slash, base = file.rpartition("/")
        name = by_path[f"{path}/"].domain.name
        try:
            await self._volumes.export(name, base.removesuffix(".img"), image)
        except CasemateError as error:
            return {"error": f"{name}: {error}"}
        return {"path": str(image)}

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


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _store_copy(system: System, chosen: dict[int, Chosen]) -> bytes:
    """The store with what a reader looks for: which qubes are in the backup, where, and how large they are.

    Upstream's reader also wants label and template said of each qube, where ours leaves out what is the default.
    """
    root = etree.fromstring(writer.write(system))
    for element in root.iterfind("domains/domain"):
        qid = element.findtext("properties/property[@name='qid']")
        domain = system.domains[element.findtext("properties/property[@name='name']") or ADMIN]
        for key, named in (("label", domain.label), ("template", domain.template if domain.has("template") else None)):
            properties = element.find("properties")
            if named is not None and properties is not None and properties.find(f"property[@name='{key}']") is None:
                etree.SubElement(properties, "property", name=key).text = named.name
        features = element.find("features")
        if features is None:
            features = etree.SubElement(element, "features")
        for feature in features.findall("feature"):
            if str(feature.get("name")).startswith("backup-") or feature.get("name") in names.KEPT_FEATURES:
                features.remove(feature)
        one = chosen.get(int(qid)) if qid else None
        marks = (
            {"backup-content": "1", "backup-path": one.path, "backup-size": str(one.size)}
            if one
            else {"backup-content": ""}
        )
        for key, value in marks.items():
            etree.SubElement(features, "feature", name=key).text = value
    return etree.tostring(root, encoding="utf-8", xml_declaration=True)


async def _send(stream: asyncio.StreamWriter, message: dict[str, object] | dict[str, str]) -> None:
    try:
        stream.write(json.dumps(message).encode("ascii") + b"\n")
        await stream.drain()
    except ConnectionError:
        pass  # it has ended; what it said last tells why


async def _ended(process: asyncio.subprocess.Process) -> None:
    """See it gone: its input has ended, so it stops by itself; a derivation of a key may take it a moment."""
    try:
        await asyncio.wait_for(asyncio.shield(process.wait()), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await asyncio.shield(process.wait())


def _size(count: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} B"
