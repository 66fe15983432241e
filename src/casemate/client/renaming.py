"""Give a qube another name: upstream's way, a copy under the new name in place of the old one; all or nothing.

Qubes keep their names for life, because volumes, policies and logs are found by them. So the qube is cloned, whatever
used it is made to use the clone, and it is removed. Up to the removal each step has a way back.
"""

from __future__ import annotations

import json

from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, InUseError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MOVED = ("ip", "ip6", "mac")
"""Properties that a clone does not get, and that belong to the qube under whatever name."""


def uses(qubes: Qubes, name: str) -> list[dict[str, Any]]:
    """Who uses a qube, as ``admin.casemate.Uses`` says it."""
    found: list[dict[str, Any]] = json.loads(qubes.call("admin.casemate.Uses", "", name))
    return found


def rename(qubes: Qubes, old: str, new: str) -> None:
    """Rename a halted qube. Raises what a clone may raise, and InUseError where it offers devices to others; then
    everything is as it was.

    The new qube has another UUID and number, and none of the older states of the volumes.
    """
    users = [use for use in uses(qubes, old) if not use["is_default"]]
    for use in users:
        if use["property"] is None:
            raise InUseError(f"{old} offers a device that is assigned to {use['qube']}: unassign it first")
    assigned = _assignments(qubes, old)
    before = qubes.properties(old)
    qubes.clone(old, new)
    back: list[Callable[[], object]] = [lambda: qubes.remove(new)]
    try:
        for method, arg, payload in assigned:
            qubes.call(method, arg, new, payload.replace(f"frontend_domain='{old}'", f"frontend_domain='{new}'"))
        for prop, value in qubes.properties(new).items():
            if value.tag == "vm" and value.text == old and not value.default:
                qubes.set(new, prop, new)
        for prop, value in before.items():
            # Two qubes cannot have one address, so it moves.
            if prop in _MOVED and not value.default:
                qubes.reset(old, prop)
                back.append(lambda prop=prop, text=value.text: qubes.set(old, prop, text))  # type: ignore[misc]
                qubes.set(new, prop, value.text)
        for use in users:
            qube, prop = use["qube"] or None, use["property"]
            qubes.set(qube, prop, new)
            back.append(lambda qube=qube, prop=prop: qubes.set(qube, prop, old))  # type: ignore[misc]
        qubes.remove(old)
    except BaseException as error:
        for step in reversed(back):
            try:
                step()
            except CasemateError as other:
                error.add_note(str(other))
        raise


def _assignments(qubes: Qubes, name: str) -> list[tuple[str, str, str]]:
    """Method, argument and payload that assign the qube's devices again."""
    from casemate.client.device_lines import argument, parse_line

    found = []
    for klass in qubes.call("admin.deviceclass.List").split():
        for line in qubes.call(f"admin.vm.device.{klass}.Assigned", "", name).splitlines():
            pairs = parse_line(line)
            where = argument(pairs["backend_domain"], pairs["port_id"], pairs.get("device_id", "*"))
            found.append((f"admin.vm.device.{klass}.Assign", where, line.partition(" ")[2]))
    return found
