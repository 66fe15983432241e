"""The page of devices: all that this host and its qubes offer, and which qube has, or is to get, each of them.

What a device or a qube says of itself is shown as such. Devices of other qubes can be seen and not given away, since
the daemon attaches only those of this host.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.client.device_lines import ANY, argument, parse_line
from casemate.web.forms import form
from casemate.web.inventory import Listed, inventory
from casemate.web.qube.devices import MODES, change_device, title_of
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, NotFoundError
from casemate.wire.names import qube_name, service_name

FROM_QUBES = "block"
"""The one class whose devices qubes offer; the daemon knows no others of theirs."""
ASKED_AT_ONCE = 8
"""Limit of the manager page (qubes): those that are asked at the same time which devices they offer."""
QUBE_SECONDS = 2.0
"""Limit of the manager page (seconds): for which it waits until a qube says which devices it offers. The answer is in
the memory of the qube's link, so that more means a link that hangs; others are shown without it."""
LONGEST_TITLE = 200
"""Characters of what a device or a qube says, in one row."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A qube that gets the device at its start."""

    qube: str
    mode: str
    argument: str
    """The assignment as methods name it: it may mean any device of a port, or a device at any port."""


@dataclass(slots=True)
class Row:
    """A device, or an assignment that means none which is there."""

    klass: str
    backend: str
    port: str
    identity: str
    title: str = ""
    size: int | None = None
    """Bytes."""
    readonly: bool = False
    there: bool = False
    attached: list[str] = field(default_factory=list)
    """Qubes that have it now."""
    assigned: list[Assigned] = field(default_factory=list)

    @property
    def argument(self) -> str:
        """How methods name it."""
        return argument(self.backend, self.port, self.identity)

    @property
    def place(self) -> str:
        """Where it is."""
        return f"{self.backend}:{self.port}"

    @property
    def of_host(self) -> bool:
        """Whether this host has it, and can give it away."""
        return self.backend == ADMIN

    def is_meant(self, backend: str, port: str, identity: str) -> bool:
        """Whether an assignment, or a device that a qube has, is this one. Either part may stand for any."""
        return self.backend == backend and port in (ANY, self.port) and identity in (ANY, self.identity)


@dataclass(slots=True)
class Group:
    """The devices of one class; ``trouble`` says why this host's cannot be listed."""

    name: str
    rows: list[Row]
    trouble: str = ""


def offered(klass: str, backend: str, text: str) -> list[Row]:
    """The rows of a list that the daemon has given."""
    rows = []
    for line in text.splitlines():
        pairs = parse_line(line)
        size = pairs.get("_size", "")
        rows.append(
            Row(
                klass,
                backend,
                pairs.get("port_id", ""),
                pairs.get("device_id", "") or ANY,
                title_of(pairs)[:LONGEST_TITLE],
                int(size) if size.isdecimal() else None,
                pairs.get("_mode") == "r",
                there=True,
            )  # fmt: skip
        )
    return rows


def place_holders(groups: list[Group], held: list[dict[str, object]]) -> None:
    """Note in the rows who has each device and who is to get it; one that is not there gets a row of its own."""
    by_class = {group.name: group for group in groups}
    for one in held:
        klass, backend, port, identity = (str(one[key]) for key in ("class", "backend", "port", "identity"))
        group = by_class.get(klass)
        if group is None:
            continue
        meant = [row for row in group.rows if row.is_meant(backend, port, identity)]
        if not meant:
            meant = [Row(klass, backend, port, identity)]
            group.rows.extend(meant)
        for row in meant:
            if one["attached"]:
                row.attached.append(str(one["qube"]))
            else:
                row.assigned.append(Assigned(str(one["qube"]), str(one["mode"]), argument(backend, port, identity)))


class DevicesPage:
    """Asks the daemon at each showing."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> Iterable[Route]:
        """The addresses of this page. Detaching and unassigning are those of a qube (``qube/devices.py``)."""
        return view("/devices", self._page), change("/devices/{klass}/{verb}", self._give)

    async def _page(self, _request: Request) -> Response:
        qubes = await inventory(self._site.api, [], [])
        classes = (await self._site.api.call("admin.deviceclass.List")).split()
        groups, held, (said, silent) = await asyncio.gather(
            asyncio.gather(*(self._of_host(klass) for klass in classes)), self._held(), self._of_qubes(qubes)
        )
        groups = list(groups)
        for group in groups:
            if group.name == FROM_QUBES:
                group.rows += said
        place_holders(groups, held)
        others = [one for one in qubes if one.name != ADMIN]
        return self._site.page(
            "devices.html", groups=groups, modes=MODES, silent=silent,
            running=[one.name for one in others if one.state == "Running"], all=[one.name for one in others],
        )  # fmt: skip

    async def _of_host(self, klass: str) -> Group:
        try:
            text = await self._site.api.call(f"admin.vm.device.{klass}.Available")
        except CasemateError as error:  # such as one bus that cannot be read: the other classes are shown all the same
            return Group(klass, [], str(error))
        return Group(klass, offered(klass, ADMIN, text))

    async def _held(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(await self._site.api.call("admin.casemate.device.Held"))
        return found

    async def _of_qubes(self, qubes: list[Listed]) -> tuple[list[Row], list[str]]:
        """What running qubes offer, and the names of those that did not tell."""
        places = asyncio.Semaphore(ASKED_AT_ONCE)
        silent: list[str] = []

        async def ask(name: str) -> list[Row]:
            async with places:
                try:
                    async with asyncio.timeout(QUBE_SECONDS):
                        text = await self._site.api.call(f"admin.vm.device.{FROM_QUBES}.Available", "", name)
                except TimeoutError:
                    silent.append(name)
                    return []
                except CasemateError:
                    return []  # it has gone meanwhile
            return offered(FROM_QUBES, name, text)

        running = [one.name for one in qubes if one.state == "Running" and one.name != ADMIN]
        found = await asyncio.gather(*(ask(name) for name in running))
        return [row for rows in found for row in rows], sorted(silent)

    async def _give(self, request: Request) -> Response:
        """Attach or assign to the qube that a person has named."""
        klass, verb = str(service_name(request.path_params["klass"])), request.path_params["verb"]
        if verb not in ("attach", "assign"):
            raise NotFoundError(message="There is no such action")
        fields = await form(request, "device", "qube", "mode")
        name = str(qube_name(fields["qube"].strip()))
        await change_device(self._site.api, klass, verb, name, fields["device"], fields["mode"])
        return done()
