"""The page of backups: profiles, what each would have in it, schedules and how their last runs ended, progress.

Profiles and records of schedules are files of the state; the daemon has no method that lists them. Where the state is
that of the whole host they are closed to other users, and the page says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.backup import profile as profiles
from casemate.backup.schedule import Schedules
from casemate.web.forms import form
from casemate.web.long_calls import TOPIC, LongCalls
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import Event
from casemate.wire.errors import CasemateError, printable
from casemate.wire.names import argument

PROGRESS = "backup-progress"
SILENT_SECONDS = 300.0
"""After so long without progress a backup that another program asked for is no longer shown as running: no event tells
of its end. Compressing one large empty volume takes a minute."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile as its file says; ``wrong`` says why it cannot be used."""

    name: str
    place: str = ""
    kind: str = ""
    """``repository`` or ``one file``"""
    passphrase: str = ""
    """Where it comes from; empty for nowhere: then somebody must type it, which the tool asks for."""
    schedule: str = ""
    """Its times and how its last run ended; empty for one that is not scheduled."""
    wrong: str = ""

    @property
    def failed(self) -> bool:
        """Whether something about the schedule is wrong; the record says it in capitals."""
        return any(word in self.schedule for word in ("FAILED", "OVERDUE", "BROKEN", "UNKNOWN"))


@dataclass(frozen=True, slots=True)
class Run:
    """A backup that this process has seen. Times are seconds since the epoch."""

    started: float
    heard: float
    percent: float = 0.0
    ended: bool = False
    why: str = ""
    """Why it failed."""
    mine: bool = False
    """Whether this page asked for it, so that its end is known."""

    def goes_on(self, now: float) -> bool:
        """Whether it is under way, as far as is known."""
        return not self.ended and (self.mine or now - self.heard < SILENT_SECONDS)


class BackupsPage:
    """Reads the files at each showing; remembers the runs that it has heard of, one for each profile."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._calls = LongCalls(site.api, site.live)
        self._settings = site.api.transport.settings
        self._runs: dict[str, Run] = {}
        site.live.listeners.append(self._hear)

    def routes(self) -> Iterable[Route]:
        """The addresses of this page."""
        return (
            view("/backups", self._page), Route("/part/backups", self._list), change("/backups/{name}/run", self._run),
            change("/backups/{name}/cancel", self._cancel),
        )  # fmt: skip

    def _hear(self, event: Event) -> None:
        name = event.details.get("backup_profile", "")
        if event.name != PROGRESS or not (name in self._runs or len(self._runs) < 100):
            return
        now = time.time()
        known = self._runs.get(name)
        if known is not None and known.ended and now - known.heard < 5:
            return  # said before its end; it came by another connection
        if known is None or not known.goes_on(now):
            known = Run(now, now)
        try:
            self._runs[name] = replace(known, heard=now, percent=float(event.details.get("progress", "0")))
        except ValueError:
            return

    async def _page(self, request: Request) -> Response:
        name, contents, wrong = request.query_params.get("profile", ""), "", ""
        if name:
            try:
                contents = await self._site.api.call("admin.backup.Info", str(argument(name)))
            except CasemateError as error:
                wrong = str(error)
        found = (await self._profiles())[0] if name else []
        chosen = next((one for one in found if one.name == name), None)
        return self._site.page("backups.html", name=name, contents=contents, wrong=wrong, chosen=chosen)

    async def _list(self, _request: Request) -> Response:
        found, closed = await self._profiles()
        now = time.time()
        running = {name: run for name, run in self._runs.items() if run.goes_on(now)}
        ended = {name: run for name, run in self._runs.items() if run.ended}
        place = str(profiles.directories(self._settings.state)[0])
        return self._site.page(
            "backups_list.html", profiles=found, closed=closed, running=running, ended=ended, place=place,
            moment=lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)),
        )  # fmt: skip

    async def _profiles(self) -> tuple[list[Profile], str]:
        """All profiles, and why they cannot be seen."""
        if self._settings.shared:
            return [], "The profiles are those of the whole host, and root's. Look at them as root."
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[list[Profile], str]:
        directories = profiles.directories(self._settings.state)
        names = sorted({path.stem for directory in directories for path in directory.glob("*.conf")})
        schedules = Schedules(self._settings.state)
        return [_profile(name, directories, schedules) for name in names], ""

    # -------------------------------------------------------------------------------------------------- what is done

    async def _run(self, request: Request) -> Response:
        await form(request)
        name = str(argument(request.path_params["name"]))

        def ended(why: str) -> None:
            self._runs[name] = replace(self._runs[name], ended=True, why=why, heard=time.time())

        self._calls.begin(f"Backup by {name}", "admin.backup.Execute", name, ended=ended)
        self._runs[name] = Run(time.time(), time.time(), mine=True)
        self._site.live.tell(TOPIC)
        return done(f"The backup by {name} has begun.", show="/backups")

    async def _cancel(self, request: Request) -> Response:
        await form(request)
        name = str(argument(request.path_params["name"]))
        await self._site.api.call("admin.backup.Cancel", name)
        return done(f"The backup by {name} is cancelled. It leaves nothing.")


def _profile(name: str, directories: tuple[object, ...], schedules: Schedules) -> Profile:
    schedule = ""
    try:
        if (scheduled := schedules.find(name)) is not None:
            schedule = f"{scheduled.when}: {schedules.told(scheduled)}"
    except CasemateError as error:
        schedule = f"UNKNOWN: {error}"
    try:
        found = profiles.find(name, directories)  # type: ignore[arg-type]
    except CasemateError as error:
        return Profile(name, schedule=schedule, wrong=printable(str(error), 500))
    place = found.destination_path or "(no place given)"
    if found.destination_vm != "dom0":
        place = f"{found.destination_vm}: {place}"
    kind = "repository" if found.repository else "one file"
    passphrase = "in the profile" if found.passphrase_text else f"asked of {found.passphrase_vm}"
    return Profile(
        name, place, kind, passphrase if found.passphrase_text or found.passphrase_vm else "", printable(schedule, 600)
    )
