"""Methods of a qube's firewall. The rules are stored; nothing enforces them yet, because qubes have no network."""

from __future__ import annotations

import asyncio

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire import events as ev
from casemate.wire.errors import NotImplementedHereError
from casemate.wire.firewall import format_rules, parse_rules


def _owner(context: Context, dest: Domain) -> Domain:
    """The qube whose rules apply: a disposable without rules of its own has those of its template."""
    if not dest.has("netvm"):
        raise NotImplementedHereError(f"{dest.name} is a {dest.klass}: it has no firewall")
    if dest.klass == "DispVM" and dest.template is not None and not context.files.has_rules(dest.uuid):
        return dest.template
    return dest


@method("admin.vm.firewall.Get", Access.READ)
def get_rules(context: Context, dest: Domain) -> str:
    """The rules of the qube, one a line. Traffic that no rule matches is dropped."""
    return format_rules(context.files.rules(_owner(context, dest).uuid))


@method("admin.vm.firewall.Set", Access.EXECUTE)
async def set_rules(context: Context, dest: Domain, payload: str = "") -> None:
    """Replace all rules of the qube; where one is wrong, nothing is changed."""
    _owner(context, dest)
    await asyncio.to_thread(context.files.set_rules, dest.uuid, parse_rules(payload))
    context.events.publish(ev.FirewallChanged(dest.name))


@method("admin.vm.firewall.Reload", Access.EXECUTE)
async def reload_rules(context: Context, dest: Domain) -> None:
    """Announce the rules again."""
    _owner(context, dest)
    context.events.publish(ev.FirewallChanged(dest.name))
