"""Create, clone, rename and remove qubes: short dialogs that say before what each affects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from casemate.client import renaming
from casemate.client.qubes import Qubes
from casemate.web.forms import form
from casemate.web.inventory import Listed, inventory
from casemate.web.qube.head import head, named
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import ADMIN
from casemate.wire.errors import AlreadyExistsError, CasemateError, NotFoundError, NotHaltedError, ValueInvalidError
from casemate.wire.names import label_name, new_qube_name, service_name

MAX_COPIES = 3
"""Limit of the manager page (copies): clones and renames at work at once; others wait. Each may copy whole disks."""
DEFAULT = "=default"
"""Stands for a default in a list of qubes. No qube can have this name."""


def bases(entries: list[Listed]) -> list[str]:
    """Qubes that others can be based on."""
    return [
        one.name for one in entries
        if one.klass == "TemplateVM" or one.properties.get("template_for_dispvms") == "True"
    ]  # fmt: skip


async def free_name(site: Site, text: str) -> str:
    """``text`` as the name of a qube that is not there yet."""
    name = str(new_qube_name(text.strip()))
    if any(line.split(" ", 1)[0] == name for line in (await site.api.call("admin.vm.List")).splitlines()):
        raise AlreadyExistsError(f"A qube named {name!r} exists already")
    return name


def routes(site: Site) -> Iterable[Route]:
    """The addresses of the dialogs and of what they do."""
    # Copies wait here, and not in the event loop's own threads, which connections to the daemon need.
    copiers = ThreadPoolExecutor(MAX_COPIES, "copy")

    def qubes() -> Qubes:
        return Qubes(site.api.transport)

    async def new(_request: Request) -> Response:
        entries = await inventory(site.api, ["template_for_dispvms", "provides_network"], [])
        classes = [klass for klass in (await site.api.call("admin.vmclass.List")).split() if klass != "AdminVM"]
        return site.page(
            "dialog_create.html", default=DEFAULT, bases=bases(entries),
            classes=sorted(classes, key=lambda klass: klass != "AppVM"),
            labels=(await site.api.call("admin.label.List")).split(),
            providers=[one.name for one in entries if one.properties.get("provides_network") == "True"],
        )  # fmt: skip

    async def create(request: Request) -> Response:
        fields = await form(request, "name", "class", "template", "label", "netvm")
        name, label = await free_name(site, fields["name"]), str(label_name(fields["label"]))
        template = "" if fields["template"] == DEFAULT else fields["template"]
        method = f"admin.vm.Create.{service_name(fields['class'])}"
        await site.api.call(method, template, payload=f"name={name} label={label}")
        if fields["netvm"] != DEFAULT:
            try:
                await site.api.call("admin.vm.property.Set", "netvm", name, fields["netvm"])
            except CasemateError:
                # What was asked for is a qube with this network, so it is not left there with another.
                await site.api.call("admin.vm.Remove", "", name)
                raise
        return done(show=f"/qubes/{name}")

    async def dialog(request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb not in ("clone", "rename", "remove"):
            raise NotFoundError(message="There is no such dialog")
        found = await head(site, named(request))
        users = [] if found.is_host else json.loads(await site.api.call("admin.casemate.Uses", "", found.row.name))
        return site.page(
            f"dialog_{verb}.html", head=found, name=found.row.name,
            users=[use for use in users if not use["is_default"]],
            followers=sorted({use["qube"] for use in users if use["is_default"]}),
        )  # fmt: skip

    def copying(name: str, label: str, doing: str, work: Callable[[], None]) -> Response:
        """Have ``work`` done by a thread, as an action of that qube."""

        async def wait() -> None:
            await asyncio.get_running_loop().run_in_executor(copiers, work)

        site.actions.run(name, label, doing, wait)
        return PlainTextResponse("", 202)

    async def clone(request: Request) -> Response:
        fields, name = await form(request, "name"), named(request)
        target = await free_name(site, fields["name"])
        await halted(name)
        return copying(name, "Clone", "being cloned", lambda: qubes().clone(name, target))

    async def rename(request: Request) -> Response:
        fields, name = await form(request, "name"), named(request)
        target = await free_name(site, fields["name"])
        await halted(name)
        response = copying(name, "Rename", "being renamed", lambda: renaming.rename(qubes(), name, target))
        response.headers["x-next"] = "#/qubes"
        return response

    async def halted(name: str) -> None:
        if name == ADMIN:
            raise ValueInvalidError(f"{name} is this host")
        if (state := (await head(site, name)).row.state) not in ("Halted", "NA"):
            raise NotHaltedError(f"{name} is {state.lower()}: shut it down first")

    async def remove(request: Request) -> Response:
        fields, name = await form(request, "state"), named(request)
        found = await head(site, name)
        if found.is_host:
            raise ValueInvalidError(f"{name} is this host")
        if found.row.state != fields["state"]:
            raise NotHaltedError(f"{name} is {found.row.state.lower()} now. Look again at what will be removed")
        users = [
            use for use in json.loads(await site.api.call("admin.casemate.Uses", "", name)) if not use["is_default"]
        ]
        if users:
            who = ", ".join(f"{use['qube'] or 'global'}.{use['property'] or 'devices'}" for use in users[:10])
            raise ValueInvalidError(f"{name} is used: {who}{', …' if users[10:] else ''}. Change those first")
        running = found.row.state not in ("Halted", "NA")

        async def work() -> None:
            if running:
                await site.api.call("admin.vm.Kill", "", name)
            try:
                await site.api.call("admin.vm.Remove", "", name)
            except NotFoundError:
                if not running:  # else it was a disposable, which goes by itself when it is ended
                    raise

        site.actions.run(name, "Remove", "being removed", work)
        return PlainTextResponse("", 202, headers={"x-next": "#/qubes"})

    return (
        view("/dialog/create", new),
        change("/qubes", create),
        view("/qubes/{name}/dialog/{verb}", dialog),
        change("/qubes/{name}/clone", clone),
        change("/qubes/{name}/rename", rename),
        change("/qubes/{name}/remove", remove),
    )
