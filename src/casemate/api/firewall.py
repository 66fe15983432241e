"""Methods of a qube's firewall: everything is let through, and any other wish is refused in words."""

from __future__ import annotations

from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire.errors import NotImplementedHereError

ACCEPT = "action=accept"


@method("admin.vm.firewall.Get", Access.READ)
def get_rules(dest: Domain) -> str:
    """The rules of the qube."""
    return f"{ACCEPT}\n"


@method("admin.vm.firewall.Set", Access.WRITE)
def set_rules(dest: Domain, payload: str) -> None:
    """Replace the rules of the qube."""
    if [line for line in payload.split("\n") if line] != [ACCEPT]:
        raise NotImplementedHereError(f"{dest.name}: the firewall is not enforced here yet; only '{ACCEPT}' is true")


@method("admin.vm.firewall.Reload", Access.READ)
def reload_rules(dest: Domain) -> None:
    """Apply the rules again."""
