"""``qubes.*``: what qubes tell this host about themselves, and the time. ``source`` is the qube, also where a program
speaks for it.

Calls come through qrexec and its policy, or from a program of this host on the socket ``qubesd.misc.sock``. A qube can
say something about itself only. Each word of it is checked, and nothing overrides what a person has set.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.wire import events as ev
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.clock import NANOSECONDS, SERVICE, format_date, parse_date
from casemate.wire.errors import ProtocolError, printable
from casemate.wire.menus import build_lines, parse_menus
from casemate.wire.requested_features import FREE, ONCE, SUPPORTED, TEXT

REQUEST = "/features-request/"
TOOLS = "/qubes-tools/"
MAX_REQUESTED = 256
"""Limit of what a qube says of itself (features): features asked for at once."""
MAX_VALUE = 128
"""Limit of what a qube says of itself (characters): value of a feature."""
CLOCK_SECONDS = 10.0
"""Seconds in which the qube that knows the time must say it. A call to an emulated qube takes about half a second."""
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


def requested(tree: Mapping[str, bytes], prefix: str) -> dict[str, str]:
    """The features in a part of a qube's database; raises ProtocolError for an invalid name or value."""
    if len(tree) > MAX_REQUESTED:
        raise ProtocolError(f"More than {MAX_REQUESTED} features are asked for")
    found = {}
    for path, untrusted_value in tree.items():
        name = str(names.feature_name(path.removeprefix(prefix)))
        value = untrusted_value.decode("ascii", "replace")
        if len(value) > MAX_VALUE or not set(value) <= _SAFE:
            raise ProtocolError(f"The value of {name} is not one that a feature may be asked to have")
        found[name] = value
    return found


def apply_request(domain: Domain, asked: Mapping[str, str]) -> None:
    """Give a qube without a template the features that it asks for and may have. Others are ignored, as upstream
    does."""
    have = domain.features
    wanted: dict[str, str] = {}
    for name, value in asked.items():
        if name in TEXT:
            wanted[name] = value
        elif value in ("0", "1") and (name in FREE or (name in ONCE and name not in have)):
            wanted[name] = "1" if value == "1" else ""
        elif value == "1" and name.startswith(SUPPORTED):
            wanted[name] = "1"
    kinds = tuple(kind for kind in SUPPORTED if any(name.startswith(kind) for name in wanted))
    for name in [name for name in have if kinds and name.startswith(kinds) and name not in wanted]:
        have.remove(name)
    for name, value in wanted.items():
        if have.get(name) != value:
            have.set(name, value)


@method("qubes.SyncAppMenus", Access.EXECUTE)
async def sync_menus(context: Context, source: str, payload: bytes = b"") -> None:
    """Store the entries of a qube's menus. A qube with a template has its template's, and is refused."""
    domain = context.store.snapshot().domains.find(source)
    if domain.template is not None:
        raise ProtocolError(f"{domain.name} has its menus from its template")
    text = build_lines(parse_menus(payload))
    await asyncio.to_thread(context.files.set_menus, domain.uuid, text)


@method("qubes.GetDate", Access.EXECUTE)
async def get_date(context: Context, arg: str = "") -> str:
    """The time of the qube that ``clockvm`` names, or of this host while that does not run or none is named. With any
    argument it has nanoseconds."""
    clockvm = context.store.snapshot().clockvm
    moment = time.time_ns()
    if clockvm is not None and clockvm.name != ADMIN and context.state(clockvm) == "Running":
        # What it says is passed on as we read it, so that whoever asks gets a date or nothing.
        moment = parse_date(await context.guests.ask(clockvm.name, SERVICE, NANOSECONDS, CLOCK_SECONDS))
    return format_date(moment, bool(arg))


@method("admin.casemate.Menus", Access.READ)
def get_menus(context: Context, dest: Domain) -> str:
    """The entries of a qube's menus, or its template's: lines of id, name, comment, icon, categories between tabs."""
    while dest.template is not None:
        dest = dest.template
    return context.files.menus(dest.uuid)


async def _written(context: Context, source: str, prefix: str) -> dict[str, bytes]:
    return await context.guests.database(source, prefix)


async def _change(context: Context, source: str, change: Callable[[System, Domain], None]) -> None:
    await asyncio.to_thread(context.store.change, lambda system: change(system, system.domains.find(source)))


async def _request(context: Context, source: str, prefix: str) -> None:
    domain = context.store.snapshot().domains.find(source)
    asked = requested(await _written(context, domain.name, prefix), prefix)
    context.events.publish(ev.FeaturesRequest(domain.name, printable(repr(asked), 8000)))
    if domain.template is not None:
        return  # a qube that is based on a template has the template's features
    first = not domain.features.get("qrexec") and asked.get("qrexec") == "1" and "qrexec" not in domain.features
    await _change(context, domain.name, lambda _system, qube: apply_request(qube, asked))
    if first:
        context.events.publish(ev.TemplatePostInstall(domain.name))


@method("qubes.FeaturesRequest", Access.EXECUTE)
async def request_features(context: Context, source: str) -> None:
    """Take over the features that a qube has written below ``/features-request/`` in its database."""
    await _request(context, source, REQUEST)


@method("qubes.NotifyTools", Access.EXECUTE)
async def notify_tools(context: Context, source: str) -> None:
    """The same from older guests, which write below ``/qubes-tools/``."""
    await _request(context, source, TOOLS)


@method("qubes.NotifyUpdates", Access.EXECUTE)
async def notify_updates(context: Context, source: str, payload: str) -> None:
    """How many updates a qube could install. Of a qube with a template it is a hint about the template while that is
    halted."""
    count = names.number(payload.strip(), "number of updates", 0, 1 << 31)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    caller = context.store.snapshot().domains.find(source)
    # A qube that runs on an older state of its template may count updates that the template has installed since.
    outdated = any(
        volume is not None and context.volumes.is_outdated(caller.name, name) for name, volume in caller.volumes.items()
    )

    def change(system: System, qube: Domain) -> None:
        about: Domain | None = qube
        while about is not None and not about.updateable:
            about = about.template
        hint = about is not qube
        if about is None or (hint and (not count or outdated or context.state(about) != "Halted")):
            return
        have = about.features
        if have.get("updates-available") and not count:
            have.set("last-update", now)
        have.set("updates-available", "1" if count else "")
        have.set("last-updates-check", now)

    await _change(context, source, change)
