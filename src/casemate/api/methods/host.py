"""What this host is asked to do for all qubes: probe its acceleration, make templates.

``admin.casemate.Probe`` boots a kernel to see whether KVM really runs a guest (once per boot of the host) and answers
``kvm REASON`` or ``tcg REASON``.

``admin.casemate.template.Install+NAME`` with a recipe (JSON, wire/recipe.py) as payload makes the template NAME from
the image of that recipe in the cache (building it if it is not there, which takes a minute) and installs its kernel.
The first one becomes the default template, its kernel the default kernel. ``admin.casemate.template.Rebuild`` puts the
newest image of its recipe into a halted template, ``admin.casemate.template.Recipe`` tells the recipe.
"""

from __future__ import annotations

import json

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire import names
from casemate.wire.errors import ProtocolError, printable
from casemate.wire.recipe import decode


@method("admin.casemate.Probe", Access.EXECUTE)
async def probe(context: Context) -> str:
    """Find out what runs guests here, and why."""
    return await context.host.probe()


@method("admin.casemate.template.Install", Access.EXECUTE)
async def install(context: Context, arg: str, payload: bytes) -> None:
    """Make a template from a recipe."""
    await context.templates.install(str(names.new_qube_name(arg)), decode(payload))


@method("admin.casemate.template.Rebuild", Access.EXECUTE)
async def rebuild(context: Context, dest: Domain, arg: str = "") -> None:
    """Put the newest image of its recipe into a halted template. With the argument ``fresh`` one is built anew, with
    today's packages."""
    if arg not in ("", "fresh"):
        raise ProtocolError(f"Not a kind of rebuilding: {printable(arg, 40)!r}; there is 'fresh'")
    context.templates.recipe(dest)
    await context.templates.rebuild(dest.name, arg == "fresh")


@method("admin.casemate.template.Builds", Access.READ)
def builds(context: Context) -> str:
    """Builds that are under way and the last that ended, as JSON: how many steps of which have ended, and the log.

    ``[{"name": "debian-13", "started": 1764230000.5, "finished": null, "why": "", "step": 2, "steps": ["package
    lists", …], "log": ["…"], "cancellable": true}, …]``; ``why`` says why one failed. Times are in seconds since the
    epoch.
    """
    return json.dumps(context.templates.builds())


@method("admin.casemate.template.Cancel", Access.EXECUTE)
async def cancel(context: Context, arg: str) -> None:
    """End the build of a template. It leaves nothing but what is whole in the cache."""
    context.templates.cancel(arg)


@method("admin.casemate.template.Recipe", Access.READ)
def recipe(context: Context, dest: Domain) -> bytes:
    """What a template was built from, as JSON."""
    return context.templates.recipe(dest).encode()
