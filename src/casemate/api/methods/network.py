"""The network of qubes as people look at it. Settings of single qubes are properties, features and firewall rules.

``admin.casemate.net.Show`` answers JSON: ``why`` (why this host has no network for qubes, or empty) and ``qubes``, each
with its name, net qube, addresses, number of rules, whether it is plugged in and joined to what serves it, traffic, and
what the guard of each of its taps dropped, by cause. ``admin.casemate.net.Explain`` with ``HOST [PROTOCOL [PORT]]`` as
payload answers JSON too: ``place``, and ``steps`` with ``where``, ``passes`` (null: it depends), ``why``, ``change``.
"""

from __future__ import annotations

import json

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.network.explain import parse_place
from casemate.wire import names


@method("admin.casemate.net.Show", Access.EXECUTE)
async def show(context: Context) -> str:
    """Who reaches whom, through what, with rules, traffic and drops."""
    return json.dumps(await context.network.report())


@method("admin.casemate.net.Explain", Access.EXECUTE)
async def explain(context: Context, dest: Domain, payload: str) -> str:
    """Which rule decides whether a qube reaches a place, and what would change that."""
    host, _, rest = payload.partition(" ")
    protocol, _, port = rest.partition(" ")
    place = parse_place(host, names.number(port, "port", 1, 65535) if port else None, protocol or "tcp")
    return json.dumps({"place": str(place), "steps": context.network.explain(dest, place)})
