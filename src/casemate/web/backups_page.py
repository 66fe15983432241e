"""The page of backups: profiles, what each would have in it, schedules and how their last runs ended, progress.

Profiles and records of schedules are files of the state; the daemon has no method that lists them. Where the state is
that of the whole host they are closed to other users, and the page says so.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.backup import profile as profiles
from casemate.backup.schedule import Schedules
from casemate.web.backup_tools import BackupTools
from casemate.web.forms import form
from casemate.web.long_calls import TOPIC, LongCalls
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import ADMIN, Event
from casemate.wire.errors import CasemateError, ValueInvalidError, printable
from casemate.wire.names import argument, qube_name

PROGRESS = "backup-progress"
CONFLICTS = {"skip": "leave it out", "rename": "give the restored one a new name"}
"""What can be done about a qube whose name is taken, by the option of the tool."""
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
    commands: tuple[str, ...] = ()
    """What verifies and restores its backups in a terminal."""
    readable: bool = False
    """Whether the newest one can be opened without a person: it is on this host, and there is a passphrase."""

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
        self._tools = BackupTools(self._settings, site.live)
        self._runs: dict[str, Run] = {}
        site.live.listeners.append(self._hear)

    def routes(self) -> Iterable[Route]:
        """The addresses of this page."""
        return (
            view("/backups", self._page), Route("/part/backups", self._list), change("/backups/{name}/run", self._run),
            change("/backups/{name}/cancel", self._cancel), change("/backups/{name}/verify", self._verify),
            change("/backups/{name}/restore", self._restore), change("/backups/{name}/stop", self._stop),
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
        return self._site.page(
            "backups.html", name=name, contents=contents, wrong=wrong, chosen=chosen, conflicts=CONFLICTS
        )

    async def _list(self, _request: Request) -> Response:
        found, closed = await self._profiles()
        now = time.time()
        running = {name: run for name, run in self._runs.items() if run.goes_on(now)}
        ended = {name: run for name, run in self._runs.items() if run.ended}
        place = str(profiles.directories(self._settings.state)[0])
        return self._site.page(
            "backups_list.html", profiles=found, closed=closed, running=running, ended=ended, place=place,
            tools=sorted(self._tools.runs.values(), key=lambda run: -run.started),
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

    async def _verify(self, request: Request) -> Response:
        """Have the newest backup read to its last byte; nothing is changed."""
        await form(request)
        return self._begin("verify", request, ())

    async def _restore(self, request: Request) -> Response:
        """Have qubes of the newest backup restored. What stands in the way is left out, or gets another name."""
        fields = await form(request, "qubes", "conflict")
        if fields["conflict"] not in CONFLICTS:
            raise ValueInvalidError(f"What is to be done about names that are taken is one of {', '.join(CONFLICTS)}")
        # They are names: what begins with a dash is none, and so is no option of the tool.
        wanted = [str(qube_name(word)) for word in fields["qubes"].replace(",", " ").split()]
        return self._begin("restore", request, ("--yes", f"--{fields['conflict']}-conflicting", "--", *wanted))

    def _begin(self, verb: str, request: Request, words: Sequence[str]) -> Response:
        name = str(argument(request.path_params["name"]))
        profile = profiles.find(name, profiles.directories(self._settings.state))
        if not (profile.passphrase_text or profile.passphrase_vm):
            raise CasemateError(f"The profile {name} has no passphrase: type it into a tool, not into this page")
        self._tools.begin(verb, name, words)
        return done(
            f"{'Restoring' if verb == 'restore' else 'Verifying'} the newest backup by {name}.", show="/backups"
        )

    async def _stop(self, request: Request) -> Response:
        await form(request)
        name = str(argument(request.path_params["name"]))
        if not self._tools.cancel(name):
            raise CasemateError(f"No backup by {name} is being verified or restored")
        return done(f"It is being ended: {name}.")


def _commands(profile: profiles.Profile) -> tuple[str, ...]:
    """What a person types in a terminal, who is then asked for the passphrase: to verify, and to restore."""
    place = shlex.quote(profile.destination_path or "PLACE")
    if profile.repository:
        return f"casemate backup verify {place}", f"casemate backup restore {place}"
    of = "" if profile.destination_vm == ADMIN else f"-d {profile.destination_vm} "
    return f"qvm-backup-restore {of}--verify-only {place}", f"qvm-backup-restore {of}{place}"


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
    has_one = bool(found.passphrase_text or found.passphrase_vm)
    return Profile(
        name, place, kind, passphrase if has_one else "", printable(schedule, 600), commands=_commands(found),
        readable=has_one and found.destination_vm == ADMIN,
    )  # fmt: skip
