"""Methods of a qube's firewall. Who enforces the rules: ``engine/network.py`` on the host, the net qube's agent."""

from __future__ import annotations

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire.errors import NotImplementedHereError
from casemate.wire.firewall import format_rules, parse_rules


def _need_firewall(dest: Domain) -> None:
    if not dest.has("netvm"):
        raise NotImplementedHereError(f"{dest.name} is a {dest.klass}: it has no firewall")


@method("admin.vm.firewall.Get", Access.READ)
def get_rules(context: Context, dest: Domain) -> str:
    """The rules of the qube, one a line. Traffic that no rule matches is dropped."""
    _need_firewall(dest)
    return format_rules(context.firewalls.rules(dest))


@method("admin.vm.firewall.Set", Access.EXECUTE)
async def set_rules(context: Context, dest: Domain, payload: str = "") -> None:
    """Replace all rules of the qube; where one is wrong, nothing is changed. They hold on this host when this returns,
    in the net qube a moment later."""
    _need_firewall(dest)
    await context.firewalls.write(dest, parse_rules(payload))
    try:
        await context.network.enforce()  # before others hear of it: the caller waits for this alone
    finally:
        context.firewalls.announce(dest)


@method("admin.vm.firewall.Reload", Access.EXECUTE)
async def reload_rules(context: Context, dest: Domain) -> None:
    """Have the rules read again and enforced."""
    _need_firewall(dest)
    context.firewalls.announce(dest)
