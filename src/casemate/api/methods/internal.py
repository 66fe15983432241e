"""``internal.*``: what programs of this host ask beside the Admin API, on the socket ``qubesd.internal.sock``.

Upstream's policy daemon reads ``GetSystemInfo``, its import program speaks ``ImportBegin`` and ``ImportEnd``, and a
host's sleep hook calls ``SuspendPre`` and ``SuspendPost``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from casemate.api.context import Context
from casemate.api.imports import MAX_IMAGE
from casemate.api.method import Access, method
from casemate.host.files import replace_file
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.wire import names
from casemate.wire.errors import CasemateError, StorageError, printable

_log = logging.getLogger(__name__)

SUSPEND_SECONDS = 60.0
"""Seconds that qubes may take to prepare for the host's sleep, and to wake up."""


def _name_of(domain: Domain, name: str) -> str | None:
    other: Domain | None = getattr(domain, name) if domain.has(name) else None
    return other.name if other is not None else None


def describe(domain: Domain, state: str) -> dict[str, object]:
    """A qube as the policy sees it; ``label`` is the colour. Keys: protocol page, internal.GetSystemInfo."""
    return {
        "internal": domain.features.get("internal"),
        "tags": sorted(domain.tags),
        "type": domain.klass,
        "template_for_dispvms": bool(getattr(domain, "template_for_dispvms", False)),
        "default_dispvm": _name_of(domain, "default_dispvm"),
        "icon": domain.icon,
        "label": domain.label.color,
        "guivm": _name_of(domain, "guivm"),
        "relayvm": _name_of(domain, "relayvm"),
        "transport_rpc": getattr(domain, "transport_rpc", None) or None,
        "power_state": state,
        "uuid": str(domain.uuid),
    }


@method("internal.GetSystemInfo", Access.READ)
def get_system_info(context: Context, system: System) -> str:
    """All that a decision of the policy may depend on, as JSON: ``{"domains": {NAME: {...}}}``."""
    return json.dumps({"domains": {d.name: describe(d, context.state(d)) for d in system.domains.ordered()}})


@method("internal.vm.volume.ImportBegin", Access.EXECUTE)
async def begin_import(context: Context, dest: Domain, arg: str, payload: str = "") -> str:
    """``SIZE PATH``: where the new content of a volume is to be written; the payload may give another size."""
    size = names.number(payload, "size", 1, MAX_IMAGE) if payload else None
    spool = context.imports.begin(dest, arg, size)
    if any(c.isspace() for c in str(spool.path)):
        context.imports.take(dest, arg).close()
        raise StorageError("The state's directory has white space in its name, which this way of import cannot carry")
    return f"{spool.size} {spool.path}"


@method("internal.vm.volume.ImportEnd", Access.EXECUTE)
async def end_import(context: Context, dest: Domain, arg: str, payload: str) -> None:
    """``ok`` puts what was written in place; ``fail`` and a line feed and a reason drop it, and are an error."""
    word, _, reason = payload.partition("\n")
    spool = context.imports.take(dest, arg)
    done = False
    try:
        if word != "ok":
            raise StorageError(f"Data import failed: {printable(reason, 500)}")
        await spool.put(spool.size)
        done = True
    finally:
        spool.close(done)


async def _tell(context: Context, name: str, service: str, stdin: bytes = b"") -> None:
    try:
        status = await context.guests.run(name, service, "root", SUSPEND_SECONDS, stdin)
        if status not in (0, 127):  # 127: the qube has no such service, which is no fault
            _log.warning("%s: %s ended with status %d", name, service, status)
    except TimeoutError:
        _log.warning("%s: %s took longer than %g s", name, service, SUSPEND_SECONDS)
    except CasemateError as error:
        _log.warning("%s: %s: %s", name, service, error)


def _paused_before(context: Context) -> Path:
    return context.store.path.parent / "paused-before-sleep"


async def _each(names_of: list[str], what: Callable[[str], Awaitable[None]], failed: str) -> None:
    found = await asyncio.gather(*(what(name) for name in names_of), return_exceptions=True)
    wrong = [f"{name}: {error}" for name, error in zip(names_of, found, strict=True) if isinstance(error, Exception)]
    if wrong:
        raise CasemateError(f"{failed}: {'; '.join(wrong)}")


@method("internal.SuspendPre", Access.EXECUTE)
async def suspend_before(context: Context) -> None:
    """The host is about to sleep: tell running qubes (qubes.SuspendPreAll), then pause them."""
    states = {name: str(machine.state) for name, machine in context.states.all().items()}
    before = sorted(name for name, state in states.items() if state in ("Paused", "Suspended"))
    # On disk, because another daemon may serve the call after the host has woken up.
    replace_file(_paused_before(context), "".join(f"{name}\n" for name in before).encode())
    running = sorted(name for name, state in states.items() if state == "Running")
    await asyncio.gather(*(_tell(context, name, "qubes.SuspendPreAll") for name in running))
    await _each(running, context.power.pause, "Not all qubes could be paused")


@method("internal.SuspendPost", Access.EXECUTE)
async def suspend_after(context: Context) -> None:
    """The host is awake: unpause the qubes that ran before it slept, which sets their clocks, and tell them."""
    try:
        before = set(_paused_before(context).read_text("ascii").split())
    except FileNotFoundError:
        before = set()
    asleep = sorted(
        name
        for name, machine in context.states.all().items()
        if str(machine.state) in ("Paused", "Suspended") and name not in before
    )
    await _each(asleep, context.power.unpause, "Not all qubes could go on")
    _paused_before(context).unlink(missing_ok=True)
    await asyncio.gather(*(_tell(context, name, "qubes.SuspendPostAll") for name in asleep))
