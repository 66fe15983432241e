"""The page of disposables: those that wait, those that run, and the images and snapshots that they go on from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.forms import form
from casemate.web.inventory import Listed, inventory
from casemate.web.long_calls import LongCalls
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import parse_property
from casemate.wire.errors import FeatureNotFoundError
from casemate.wire.images import ListedImage, Snapshot, parse_lines
from casemate.wire.names import number, qube_name

PRELOADED = "preload-dispvm"
"""Feature of a template: the disposables of it that wait. The daemon writes it; names are those of Qubes OS 4.3."""
IN_PROGRESS = "preload-dispvm-in-progress"
MAX = "preload-dispvm-max"
MOST_WAITING = 64
"""As the daemon has it."""


@dataclass(frozen=True, slots=True)
class Base:
    """A disposable template."""

    name: str
    template: str
    default: bool
    waiting: tuple[str, ...]
    wanted: str
    """How many are to wait; empty where nobody has said, and use decides."""


class DisposablesPage:
    """Asks the daemon at each showing."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._calls = LongCalls(site.api, site.live)

    def routes(self) -> Iterable[Route]:
        """The addresses of this page."""
        return (
            view("/disposables", self._page), Route("/part/disposables", self._list),
            change("/disposables/{name}/new", self._new), change("/disposables/{name}/wait", self._wait),
            change("/disposables/{name}/warm", self._build), change("/warm/{key}/drop", self._drop),
            change("/disposables/{name}/fork", self._fork), change("/disposables/{name}/keep", self._keep),
            change("/snapshots/{name}/resume", self._resume), change("/snapshots/{name}/drop", self._drop_snapshot),
        )  # fmt: skip

    async def _page(self, _request: Request) -> Response:
        return self._site.page("disposables.html")

    async def _list(self, _request: Request) -> Response:
        found = await inventory(
            self._site.api,
            ["template", "template_for_dispvms", "start_time", "label"],
            [PRELOADED, IN_PROGRESS, MAX],
        )
        default = await self._default()
        bases = bases_of(found, default)
        waiting = {name for base in bases for name in base.waiting}
        disposables = [one for one in found if one.klass == "DispVM"]
        now = time.time()
        ages = {one.name: age(now - float(one.properties.get("start_time") or now)) for one in disposables}
        return self._site.page(
            "disposables_list.html", bases=bases, ages=ages, age=age, now=now,
            images=parse_lines(ListedImage, await self._site.api.call("admin.casemate.warm.List")),
            snapshots=parse_lines(Snapshot, await self._site.api.call("admin.casemate.snapshot.List")),
            running=[one for one in disposables if one.name not in waiting],
            waiting=[one for one in disposables if one.name in waiting], in_progress=IN_PROGRESS,
        )  # fmt: skip

    async def _default(self) -> str:
        return parse_property(await self._site.api.call("admin.property.Get", "default_dispvm")).text

    # -------------------------------------------------------------------------------------------------- what is done

    async def _new(self, request: Request) -> Response:
        """Make a disposable and start it; it is there at once, its start goes on."""
        await form(request)
        base = str(qube_name(request.path_params["name"]))
        name = await self._site.api.call("admin.vm.CreateDisposable", "", base)
        self._site.actions.begin("start", str(qube_name(name)))
        return done(f"{name} is made and is starting.")

    async def _wait(self, request: Request) -> Response:
        """Say how many of a template are to wait; with an empty field use decides again."""
        fields = await form(request)
        name, wanted = str(qube_name(request.path_params["name"])), fields.get("wanted", "").strip()
        if wanted:
            number(wanted, "number of those that wait", 0, MOST_WAITING)
            await self._site.api.call("admin.vm.feature.Set", MAX, name, wanted)
            return done(f"{wanted} of {name} wait from now on.")
        with suppress(FeatureNotFoundError):
            await self._site.api.call("admin.vm.feature.Remove", MAX, name)
        return done(f"How many of {name} wait is decided by their use.")

    async def _build(self, request: Request) -> Response:
        await form(request)
        name = str(qube_name(request.path_params["name"]))
        self._calls.begin(f"Warm image of {name}", "admin.casemate.warm.Build", "", name)
        return done(f"The warm image of {name} is being made; that takes as long as a boot.")

    async def _fork(self, request: Request) -> Response:
        await form(request)
        name = str(qube_name(request.path_params["name"]))
        self._calls.begin(f"Fork of {name}", "admin.casemate.vm.Fork", "1", name)
        return done(f"{name} is being forked: it stands still for a moment, then another goes on beside it.")

    async def _keep(self, request: Request) -> Response:
        """Keep a qube as it is, under its name and the time."""
        await form(request)
        qube = str(qube_name(request.path_params["name"]))
        name = f"{qube}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._calls.begin(f"Snapshot of {qube}", "admin.casemate.vm.Snapshot", name, qube)
        return done(f"{qube} is being kept as it is now, as {name}; it stands still for a moment.")

    async def _resume(self, request: Request) -> Response:
        await form(request)
        name = request.path_params["name"]
        self._calls.begin(f"Resume of {name}", "admin.casemate.snapshot.Resume", name)
        return done(f"A disposable is going on from {name}.")

    async def _drop_snapshot(self, request: Request) -> Response:
        await form(request)
        await self._site.api.call("admin.casemate.snapshot.Drop", request.path_params["name"])
        return done("The snapshot is dropped. What went on from it runs on.")

    async def _drop(self, request: Request) -> Response:
        await form(request)
        await self._site.api.call("admin.casemate.warm.Drop", request.path_params["key"])
        return done("The image is dropped. A start that misses it has it made again.")


def bases_of(found: list[Listed], default: str) -> list[Base]:
    """The disposable templates among all qubes, the default one first."""
    admin = next((one.features for one in found if one.klass == "AdminVM"), {})
    bases = []
    for one in found:
        if one.properties.get("template_for_dispvms") != "True":
            continue
        wanted = one.features.get(MAX, "")
        if one.name == default:  # what dom0 says counts for the default one
            wanted = admin.get(MAX, wanted)
        waiting = tuple(one.features.get(PRELOADED, "").split())
        bases.append(Base(one.name, one.properties.get("template", ""), one.name == default, waiting, wanted))
    return sorted(bases, key=lambda base: (not base.default, base.name))


def age(seconds: float) -> str:
    """A time, for a person: ``40 s``, ``5 min``, ``3 h``, ``2 days``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
