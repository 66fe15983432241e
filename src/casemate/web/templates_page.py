"""The page of templates: which qubes use each, switching several at once, building new ones."""

from __future__ import annotations

import asyncio
import calendar
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.disposables_page import age
from casemate.web.forms import form
from casemate.web.inventory import inventory
from casemate.web.long_calls import LongCalls
from casemate.web.site import Site, change, done, view
from casemate.wire.admin import parse_property
from casemate.wire.errors import CasemateError, RecipeNotFoundError, ValueInvalidError
from casemate.wire.names import new_qube_name, qube_name
from casemate.wire.recipe import KINDS, RELEASES, STABLE, Recipe, decode

BUILD_SECONDS = 3600.0
"""Limit of the manager page (seconds): one build of a template. The daemon gives up a bootstrap after half of that."""
MAX_LOST = 20
"""Limit of the manager page (builds): remembered of those that the daemon refused, or that ended with it."""
BUILT = "template-buildtime"
"""Feature of a template: when its image was built, ``YYYY-MM-DD HH:MM:SS`` in UTC."""


@dataclass(frozen=True, slots=True)
class Template:
    """What is shown of one template."""

    name: str
    state: str
    default: bool
    recipe: str
    """What it was built from, in words; empty for one that was cloned or made in another way."""
    age: str
    users: tuple[str, ...]


class TemplatesPage:
    """Asks the daemon at each showing, which knows the builds of all who asked for one."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._calls = LongCalls(site.api, site.live)
        self._asked: set[str] = set()
        """Builds that this page has asked for and that have not ended."""
        self._lost: dict[str, str] = {}
        """Why builds that this page asked for have failed. Shown where the daemon knows nothing of one: it refused to
        begin, or ended in the midst of it and another one answers now."""

    def routes(self) -> Iterable[Route]:
        """The addresses of this page."""
        return (
            view("/templates", self._page), Route("/part/templates", self._list),
            change("/templates/switch", self._switch), change("/templates/build", self._build),
            change("/templates/{name}/rebuild", self._rebuild), Route("/part/builds", self._list_builds),
            change("/templates/{name}/fresh", self._fresh), change("/templates/{name}/cancel", self._cancel),
        )  # fmt: skip

    async def _page(self, _request: Request) -> Response:
        found = await inventory(self._site.api, ["template"], [])
        users = [one for one in found if one.klass in ("AppVM", "DispVM") and "template" in one.properties]
        return self._site.page(
            "templates.html", releases=RELEASES,
            kinds=KINDS, default=STABLE, users=[one for one in users if one.klass == "AppVM"],
            names=[one.name for one in found if one.klass == "TemplateVM"],
        )  # fmt: skip

    async def _list(self, _request: Request) -> Response:
        found = await inventory(self._site.api, ["template"], [BUILT])
        default = parse_property(await self._site.api.call("admin.property.Get", "default_template")).text
        templates = [one for one in found if one.klass == "TemplateVM"]
        recipes = await asyncio.gather(*(self._recipe(one.name) for one in templates))
        shown = [
            Template(
                one.name, one.state, one.name == default, recipe, built(one.features.get(BUILT, "")),
                tuple(user.name for user in found if user.properties.get("template") == one.name),
            )
            for one, recipe in zip(templates, recipes, strict=True)
        ]  # fmt: skip
        building = {one["name"] for one in await self._builds() if one["finished"] is None}
        return self._site.page("templates_list.html", templates=shown, building=building)

    async def _builds(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(await self._site.api.call("admin.casemate.template.Builds"))
        return found

    async def _list_builds(self, _request: Request) -> Response:
        """Those under way and the last that ended, each with its log."""
        builds = await self._builds()
        known = {one["name"] for one in builds} | self._asked
        lost = {name: why for name, why in self._lost.items() if name not in known}
        return self._site.page(
            "builds.html", builds=builds, lost=lost,
            moment=lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)),
        )  # fmt: skip

    async def _recipe(self, name: str) -> str:
        try:
            recipe = decode((await self._site.api.call("admin.casemate.template.Recipe", "", name)).encode())
        except RecipeNotFoundError:
            return ""
        packages = f" with {', '.join(recipe.packages)}" if recipe.packages else ""
        return f"Debian {RELEASES[recipe.suite]}, {recipe.kind}{packages}"

    # -------------------------------------------------------------------------------------------------- what is done

    async def _switch(self, request: Request) -> Response:
        """Give the chosen qubes another template, one after the other. What is refused for one holds no other up."""
        fields = await form(request)
        target = str(qube_name(fields.get("to", "")))
        chosen = [str(qube_name(key.removeprefix("qube-"))) for key in fields if key.startswith("qube-")]
        if not chosen:
            raise ValueInvalidError("Choose at least one qube")
        refused = []
        for name in chosen:
            try:
                await self._site.api.call("admin.vm.property.Set", "template", name, target)
            except CasemateError as error:
                refused.append(f"{name}: {error}")
        changed = len(chosen) - len(refused)
        told = f"{changed} {'qube has' if changed == 1 else 'qubes have'} the template {target}."
        if refused:
            self._site.live.notice("\n".join((told, "Not switched:", *refused)))
            return done()
        return done(told)

    async def _build(self, request: Request) -> Response:
        """Build a template from a recipe; the daemon takes the image from its cache, or makes it."""
        fields = await form(request)
        packages = tuple(fields.get("packages", "").replace(",", " ").split())
        recipe = Recipe(fields.get("suite", STABLE), fields.get("kind", KINDS[0]), packages)
        name = str(new_qube_name(fields.get("name", "").strip() or recipe.default_name))
        self._begin(name, "admin.casemate.template.Install", name, "dom0", recipe.encode().decode())
        return done(f"{name} is being built. Without an image in the cache that takes a minute or more.")

    async def _rebuild(self, request: Request) -> Response:
        await form(request)
        name = str(qube_name(request.path_params["name"]))
        self._begin(name, "admin.casemate.template.Rebuild", "", name, "")
        return done(f"{name} gets the newest image of its recipe. What it was is its newest revision.")

    async def _fresh(self, request: Request) -> Response:
        """Build the image of a template's recipe anew, and put it in."""
        await form(request)
        name = str(qube_name(request.path_params["name"]))
        self._begin(name, "admin.casemate.template.Rebuild", "fresh", name, "")
        return done(f"{name} is being built anew. What it is now becomes its newest revision.")

    async def _cancel(self, request: Request) -> Response:
        await form(request)
        name = str(qube_name(request.path_params["name"]))
        await self._site.api.call("admin.casemate.template.Cancel", name)
        return done(f"The build of {name} is cancelled.")

    def _begin(self, name: str, method: str, arg: str, dest: str, payload: str) -> None:
        if name in self._asked:
            raise ValueInvalidError(f"{name} is being built already")

        def ended(why: str) -> None:
            self._asked.discard(name)
            self._lost.pop(name, None)
            if why:
                self._lost[name] = why
            while len(self._lost) > MAX_LOST:
                del self._lost[next(iter(self._lost))]

        self._calls.begin(f"Template {name}", method, arg, dest, payload, ended, BUILD_SECONDS)
        self._asked.add(name)


def built(text: str) -> str:
    """How long ago an image was built, for a person; empty where that is not known."""
    try:
        then = calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S"))
    except ValueError:
        return ""
    return age(time.time() - then)
