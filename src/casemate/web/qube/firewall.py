"""The firewall of a qube: its rules, and which rule on the whole way decides about a place.

Rules are upstream's lines. The daemon checks them; here a form is only put together into a line. The Admin API replaces
all rules at once, so each change names what it began with and is refused when others have changed the rules meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.web.forms import form
from casemate.web.qube.head import named, tab
from casemate.web.site import Site, change, done, view
from casemate.wire.errors import CasemateError, ValueInvalidError
from casemate.wire.firewall import ACTIONS, PROTOCOLS, Rule, format_rules, parse_rules, rule_of, stored_part
from casemate.wire.names import number

MAX_MINUTES = 60 * 24 * 366
"""A year: the longest time after which a rule ends by itself that the form takes."""
_PARTS = ("action", "proto", "dsthost", "dstports", "comment")


def rule_from(fields: dict[str, str], now: float) -> Rule:
    """The rule that a filled-in form means; ValueInvalidError. Empty fields are parts that it does not have."""
    parts = [stored_part(key, fields[key].strip()) for key in _PARTS if fields[key].strip()]
    if minutes := fields["minutes"].strip():
        parts.append(("expire", str(int(now) + 60 * number(minutes, "minutes", 1, MAX_MINUTES))))
    return rule_of(parts)


def ends(rule: Rule) -> str:
    """When a rule ends by itself, for a person."""
    if "expire" not in rule:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(int(rule["expire"])))
    except (OverflowError, ValueError, OSError):  # 2**40 is a year that no calendar here has
        return "in the far future"


async def explain(site: Site, qube: str, query: dict[str, str]) -> dict[str, Any] | None:
    """What ``admin.casemate.net.Explain`` says about the place that was asked for; None where none was."""
    if not query.get("host"):
        return None
    wish = " ".join(filter(None, (query["host"].strip(), query.get("proto", "tcp"), query.get("port", "").strip())))
    try:
        found: dict[str, Any] = json.loads(await site.api.call("admin.casemate.net.Explain", "", qube, wish))
    except CasemateError as error:
        return {"trouble": str(error)}
    verdicts = [step["passes"] for step in found["steps"]]
    found["verdict"] = "no" if False in verdicts else "it depends" if None in verdicts else "yes"
    return found


def routes(site: Site) -> Iterable[Route]:
    """The addresses of this tab."""
    one_at_a_time = asyncio.Lock()

    async def rules_of(name: str) -> str:
        return await site.api.call("admin.vm.firewall.Get", "", name)

    async def show(request: Request) -> Response:
        name = named(request)
        query = {key: request.query_params.get(key, "") for key in ("host", "proto", "port")}
        try:
            text, trouble = await rules_of(name), ""
        except CasemateError as error:
            text, trouble = "", str(error)
        lines = text.splitlines()
        return await tab(
            site, request, "firewall", "qube_firewall.html", text=text, trouble=trouble, query=query,
            rules=[(line, rule, ends(rule)) for line, rule in zip(lines, parse_rules(text), strict=True)],
            answer=await explain(site, name, query), actions=ACTIONS, protocols=PROTOCOLS,
        )  # fmt: skip

    async def replace(name: str, known: str, text: str) -> Response:
        """Set all rules, if they are still those that the change began with."""
        async with one_at_a_time:
            if await rules_of(name) != known:
                raise ValueInvalidError("The rules were changed meanwhile. Look at them, and try again")
            await site.api.call("admin.vm.firewall.Set", "", name, text)
        return done()

    async def write(request: Request) -> Response:
        fields = await form(request, "known", "rules")
        return await replace(named(request), fields["known"], fields["rules"])

    async def add(request: Request) -> Response:
        fields = await form(request, "where", "minutes", *_PARTS)
        rule, name = rule_from(fields, time.time()), named(request)
        if fields["where"] not in ("first", "last"):
            raise ValueInvalidError("A rule is added first or last")
        known = await rules_of(name)
        rules = parse_rules(known)
        return await replace(
            name, known, format_rules([rule, *rules] if fields["where"] == "first" else [*rules, rule])
        )

    async def remove(request: Request) -> Response:
        fields = await form(request, "rule")
        place, _, line = fields["rule"].partition(" ")
        name = named(request)
        known = await rules_of(name)
        lines = known.splitlines()
        at = number(place, "number of a rule", 0, 100_000)
        if at >= len(lines) or lines[at] != line:
            raise ValueInvalidError("The rules were changed meanwhile. Look at them, and try again")
        return await replace(name, known, "".join(f"{one}\n" for one in lines[:at] + lines[at + 1 :]))

    return (
        view("/qubes/{name}/firewall", show),
        change("/qubes/{name}/firewall", write),
        change("/qubes/{name}/firewall/add", add),
        change("/qubes/{name}/firewall/remove", remove),
    )
