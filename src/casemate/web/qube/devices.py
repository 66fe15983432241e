"""Devices of a qube: which it has, which it gets at each start, which this host offers, which it offers itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.client.device_lines import argument, parse_line, payload
from casemate.web.admin_api import AdminApi
from casemate.web.forms import form
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, NotFoundError, ValueInvalidError
from casemate.wire.names import service_name

MODES = {
    "required": "at each start, which fails without it",
    "auto-attach": "at each start, if it is there",
    "ask-to-attach": "only after a question",
}  # fmt: skip
VERBS = {"attach": "Attach", "detach": "Detach", "assign": "Assign", "unassign": "Unassign"}
"""What can be done with a device, by the word in the address; the value is the end of the method's name."""


async def change_device(api: AdminApi, klass: str, verb: str, qube: str, device: str, mode: str) -> None:
    """Carry out one of VERBS. ``device`` is BACKEND+PORT+IDENTITY; ``mode`` (see MODES) is that of an assignment."""
    if device.count("+") < 2:
        raise ValueInvalidError("A device is written BACKEND+PORT+IDENTITY")
    text = ""
    if verb in ("attach", "assign"):
        if verb == "assign" and mode not in MODES:
            raise ValueInvalidError(f"The mode of an assignment is one of {', '.join(MODES)}")
        text = payload(klass, device, mode if verb == "assign" else "manual", {})
    await api.call(f"admin.vm.device.{klass}.{VERBS[verb]}", device, qube, text)


def title_of(pairs: dict[str, str]) -> str:
    """What a device, or the qube that offers it, says that it is; empty where it says nothing."""
    return " ".join(filter(None, (pairs.get("vendor", ""), pairs.get("product", ""), pairs.get("name", ""))))


@dataclass(slots=True)
class Device:
    """One line of the tab."""

    argument: str
    """How methods name it."""
    place: str
    title: str
    """What the device, or the qube that offers it, says it is."""
    attached: bool = False
    mode: str = ""
    """That of its assignment; empty without one."""
    there: bool = False
    """Whether it is offered now."""


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """All devices of a class that concern the qube."""

    name: str
    devices: list[Device]
    trouble: str = ""


def _entry(found: dict[str, Device], pairs: dict[str, str]) -> Device:
    """The line of a device in a list of the daemon's, made if it is not there yet."""
    backend, port, ident = pairs.get("backend_domain", ADMIN), pairs.get("port_id", ""), pairs.get("device_id", "")
    word = argument(backend, port, ident or "*")
    title = title_of(pairs)
    device = found.setdefault(word, Device(word, f"{backend}:{port}", title or ident))
    device.title = title or device.title
    return device


async def read(site: Site, qube: str, klass: str) -> DeviceClass:
    """What the daemon says about one class; what it cannot tell is in ``trouble``, so that one does not hide others."""
    try:
        offered, attached, assigned = await asyncio.gather(
            site.api.call(f"admin.vm.device.{klass}.Available"),
            site.api.call(f"admin.vm.device.{klass}.Attached", "", qube),
            site.api.call(f"admin.vm.device.{klass}.Assigned", "", qube),
        )
    except CasemateError as error:
        return DeviceClass(klass, [], str(error))
    found: dict[str, Device] = {}
    for line in offered.splitlines():
        _entry(found, parse_line(line)).there = True
    for line in attached.splitlines():
        _entry(found, parse_line(line)).attached = True
    for line in assigned.splitlines():
        pairs = parse_line(line)
        _entry(found, pairs).mode = pairs.get("mode", "required")
    return DeviceClass(klass, list(found.values()))


async def offers(site: Site, qube: str) -> list[dict[str, str]]:
    """The block devices that the qube says it has. They are its word, and cannot be attached to others here."""
    if qube == ADMIN:
        return []
    try:
        return [
            parse_line(line) for line in (await site.api.call("admin.vm.device.block.Available", "", qube)).splitlines()
        ]
    except CasemateError:
        return []


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""

    async def show(request: Request) -> Response:
        name = named(request)
        listed = (await site.api.call("admin.deviceclass.List")).split()
        found = await asyncio.gather(*(read(site, name, klass) for klass in listed))
        return await tab(
            site, request, "devices", "qube_devices.html", classes=found, modes=MODES, offers=await offers(site, name)
        )

    async def act(request: Request) -> Response:
        klass, verb = str(service_name(request.path_params["klass"])), request.path_params["verb"]
        if verb not in VERBS:
            raise NotFoundError(message="There is no such action")
        fields = await form(request, "device", *(("mode",) if verb == "assign" else ()))
        await change_device(site.api, klass, verb, named(request), fields["device"], fields.get("mode", ""))
        return done()

    return view("/qubes/{name}/devices", show), change("/qubes/{name}/device/{klass}/{verb}", act)
