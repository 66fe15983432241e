"""The first steps, above the table of qubes: shown where there is no template or no app qube, until all are done."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.forms import form
from casemate.web.live import Row
from casemate.web.site import Site, change, done
from casemate.wire.errors import CasemateError
from casemate.wire.names import label_name, new_qube_name
from casemate.wire.recipe import RELEASES, STABLE

NET_QUBE = "sys-net"
"""Name of the net qube that is made here, as Qubes OS has it."""

TOPIC = "first"


@dataclass(frozen=True, slots=True)
class Steps:
    """What is done. ``first`` is the app qube that is to be started."""

    template: bool
    network: bool
    qube: bool
    started: bool
    first: str

    @property
    def begins(self) -> bool:
        """Whether this is a system on which nothing can run yet."""
        return not self.template or not self.qube

    @property
    def finished(self) -> bool:
        """Whether nothing is left. A system without network is one too."""
        return self.template and self.qube and self.started


def steps(rows: Iterable[Row]) -> Steps:
    """How far a system is, by its qubes."""
    rows = list(rows)
    apps = [row for row in rows if row.klass in ("AppVM", "StandaloneVM") and not row.provides_network]
    return Steps(
        any(row.klass == "TemplateVM" for row in rows),
        any(row.provides_network for row in rows),
        bool(apps),
        any(row.state == "Running" for row in apps),
        min((row.name for row in apps), default=""),
    )


class FirstRun:
    """Remembers that a person is in the midst of the steps: they stay until the last one is done."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._begun = False
        self._told: Steps | None = None
        site.live.settled.append(self._look)

    def routes(self) -> Iterable[Route]:
        """The addresses of the steps."""
        return (
            Route("/part/first", self._steps), change("/first/qube", self._make_qube),
            change("/first/network", self._make_network),
        )  # fmt: skip

    def _look(self) -> None:
        """Tell of another state of the steps. Not at an event: who asks then may be answered from older rows."""
        found = steps(self._site.live.rows.values())
        if found != self._told:
            self._told = found
            self._site.live.tell(TOPIC)

    async def _steps(self, _request: Request) -> Response:
        if self._site.live.lost:
            return self._site.page("first.html", steps=None)
        found = steps(self._site.live.rows.values())
        self._begun = (self._begun or found.begins) and not found.finished
        return self._site.page(
            "first.html", steps=found if self._begun else None, release=RELEASES[STABLE], suite=STABLE, net=NET_QUBE,
            labels=("blue", "green", "yellow", "orange", "red", "purple", "gray", "black"),
        )  # fmt: skip

    async def _make_qube(self, request: Request) -> Response:
        fields = await form(request)
        name = str(new_qube_name(fields.get("name", "").strip()))
        label = str(label_name(fields.get("label", "blue")))
        await self._site.api.call("admin.vm.Create.AppVM", "", "dom0", f"name={name} label={label}")
        return done(f"{name} is made.")

    async def _make_network(self, request: Request) -> Response:
        """Make a net qube with this host's network, and the default of all others. Undone where a step of it fails."""
        await form(request)
        why = json.loads(await self._site.api.call("admin.casemate.net.Show"))["why"]
        if why:
            raise CasemateError(f"Qubes have no network on this host: {why}")
        call = self._site.api.call
        await call("admin.vm.Create.AppVM", "", "dom0", f"name={NET_QUBE} label=red")
        try:
            await call("admin.vm.property.Set", "netvm", NET_QUBE, "")
            await call("admin.vm.property.Set", "provides_network", NET_QUBE, "True")
            await call("admin.vm.feature.Set", "net.uplink", NET_QUBE, "pasta")
            await call("admin.property.Set", "default_netvm", "dom0", NET_QUBE)
        except CasemateError:
            await call("admin.vm.Remove", "", NET_QUBE)
            raise
        return done(f"{NET_QUBE} is made. It starts with the first qube that needs it.")
