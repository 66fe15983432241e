"""Methods that list, create and remove qubes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from casemate.api.context import ALWAYS_RUNNING, Context
from casemate.api.method import Access, method
from casemate.model.classes import CLASSES, Admin
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.model.volumes import VOLUME_NAMES
from casemate.wire import names
from casemate.wire.admin import ADMIN, NOT_RESTORED, PROHIBIT_START, RESTORE_INCOMPLETE, ListedQube, build_list
from casemate.wire.errors import (
    PermissionDeniedError,
    ProtocolError,
    QubeError,
    ValueInvalidError,
    printable,
)

NEW_CLASSES = tuple(name for name, cls in CLASSES.items() if cls is not Admin)


def listed(context: Context, domain: Domain) -> ListedQube:
    """A qube's line in the list."""
    return ListedQube(domain.name, domain.klass, context.state(domain), domain.uuid_text)


class _Lines:
    """The parts of the list of all qubes that follow from the store, kept as long as its snapshot is the same.

    Every tool begins with this list. Only the power states are put in at each call.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        found = []
        for state in system.domains.states():
            name, klass = str(state.values["name"]), state.klass.class_name
            always = "Running" if klass in ALWAYS_RUNNING else ""
            found.append(
                (
                    klass != Admin.class_name,
                    name,
                    f"{name} class={klass} state=",
                    f" uuid={state.values['uuid']}\n",
                    always,
                )
            )
        self.lines = [entry[1:] for entry in sorted(found)]


_last: list[_Lines] = []


def _lines(system: System) -> _Lines:
    if not _last or _last[0].system is not system:
        _last[:] = [_Lines(system)]
    return _last[0]


@method("admin.vm.List", Access.READ, shows_qubes=True)
def list_qubes(context: Context, system: System, dest: Domain, sees: Callable[[str], bool], source: str) -> str:
    """All qubes that the caller may see, with class, state and UUID; with a qube as destination only that one."""
    if dest is not system.admin:
        return build_list([listed(context, dest)])
    states = context.states.all()
    return "".join(
        [
            f"{start}{always or (str(states[name].state) if name in states else 'Halted')}{end}"
            for name, start, end, always in _lines(system).lines
            if source == ADMIN or sees(name)
        ]
    )


@method("admin.vmclass.List", Access.READ)
def list_classes() -> str:
    """The classes of qubes."""
    return "".join(f"{name}\n" for name in CLASSES)


class Creation(NamedTuple):
    """What the payload of a creation says."""

    name: str
    label: str
    pools: dict[str, str]
    features: dict[str, str]


def creation(payload: str, pooled: bool) -> Creation:
    """Name, label and pools in the payload of a creation, and for a restore its process (``restored-by=PID``).

    A qube that is being restored has the features that say so from its first moment: a restore may be killed at any.
    """
    found: dict[str, str] = {}
    for word in payload.split(" "):
        key, equals, value = word.partition("=")
        if not equals or key in found:
            raise ProtocolError(f"Not understood, or given twice: {printable(word, 80)!r}")
        found[key] = value
    features = {}
    if restorer := found.pop("restored-by", ""):
        features[RESTORE_INCOMPLETE] = str(names.number(restorer, "process"))
        features[PROHIBIT_START] = NOT_RESTORED
    pools: dict[str, str] = {}
    for key in [key for key in found if key == "pool" or key.startswith("pool:")]:
        volume = key.partition(":")[2]
        if not pooled or (volume and volume not in VOLUME_NAMES):
            raise ProtocolError(f"Not understood: {printable(key, 80)!r}")
        pools[volume] = str(names.pool_name(found.pop(key)))
    if pooled and (not pools or ("" in pools and len(pools) > 1)):
        raise ProtocolError("Either one pool= or pool:VOLUME= for some volumes is needed")
    for key in ("name", "label"):
        if not found.get(key):
            raise ProtocolError(f"A creation needs {key}=")
    if len(found) > 2:
        raise ProtocolError(f"Not understood: {printable(', '.join(sorted(found.keys() - {'name', 'label'})), 80)}")
    name, label = str(names.new_qube_name(found["name"])), str(names.label_name(found["label"]))
    return Creation(name, label, pools, features)


def _template(arg: str, sees: Callable[[str], bool]) -> str | None:
    """The template that a creation names, if the caller may know of it."""
    if arg and not sees(names.qube_name(arg)):
        raise PermissionDeniedError
    return arg or None


@method("admin.vm.Create.{klass}", Access.EXECUTE, klass=NEW_CLASSES)
async def create(
    context: Context, sees: Callable[[str], bool], source: str, klass: str, payload: str, arg: str = ""
) -> None:
    """Create a qube; the argument is its template, the payload ``name=NAME label=LABEL``."""
    made = creation(payload, pooled=False)
    await context.qubes.create(
        klass, made.name, made.label, _template(arg, sees), features=made.features, creator=source
    )


@method("admin.vm.CreateInPool.{klass}", Access.EXECUTE, klass=NEW_CLASSES)
async def create_in_pool(
    context: Context, sees: Callable[[str], bool], source: str, klass: str, payload: str, arg: str = ""
) -> None:
    """Create a qube with all its volumes (``pool=``) or some (``pool:VOLUME=``) in given pools."""
    made = creation(payload, pooled=True)
    await context.qubes.create(
        klass, made.name, made.label, _template(arg, sees), made.pools, features=made.features, creator=source
    )


@method("admin.vm.{verb}.AdminVM", Access.EXECUTE, verb=("Create", "CreateInPool"))
async def create_admin(verb: str, payload: str, arg: str = "") -> None:
    """Always refused: the only AdminVM is this host."""
    raise ValueInvalidError("There is one AdminVM, and it is not created")


@method("admin.vm.CreateDisposable", Access.EXECUTE)
async def create_disposable(
    context: Context, system: System, dest: Domain, source: str, arg: str = "", payload: str = ""
) -> str:
    """Create a disposable of the qube; its name, or with payload ``uuid`` its UUID.

    With dom0 as destination it is made of the caller's default template of disposables.

    With argument ``preload`` none is made for the caller: those that are to wait for their use are started now, and the
    answer is empty.
    """
    if arg not in ("", "preload"):
        raise ValueInvalidError("The argument of CreateDisposable is empty or 'preload'")
    if payload not in ("", "uuid"):
        raise ValueInvalidError("The payload of CreateDisposable is empty or 'uuid'")
    template: str | None = dest.name
    if dest is system.admin:
        default = None if source == ADMIN else system.domains[source].default_dispvm
        template = None if default is None else default.name
        if source != ADMIN and template is None:
            raise QubeError("There is no default template of disposables")
    if arg == "preload":
        context.disposables.preload(template)
        return ""
    name = await context.disposables.create(template, source)
    return f"uuid:{context.store.snapshot().domains[name].uuid_text}" if payload else name


@method("admin.casemate.Uses", Access.READ, shows_qubes=True)
def uses(system: System, dest: Domain, sees: Callable[[str], bool], source: str) -> str:
    """Who uses the qube, as JSON: ``[{"qube": "work", "property": "netvm", "is_default": false}, …]``.

    ``qube`` is empty for a global property. With ``is_default`` the value comes from a template or a global property.
    A device that is assigned from the qube has ``property`` null. Asked before a qube is removed or renamed.
    """
    found: list[dict[str, object]] = []
    for holder in (system, *system.domains.ordered()):
        name = holder.name if isinstance(holder, Domain) else ""
        if name == dest.name or (name and source != ADMIN and not sees(name)):
            continue
        for prop in holder.references():
            if holder.stored(prop.name) == dest.name:
                found.append({"qube": name, "property": prop.name, "is_default": not holder.is_set(prop.name)})
        if isinstance(holder, Domain) and any(one.device.backend == dest.name for one in holder.devices):
            found.append({"qube": name, "property": None, "is_default": False})
    return json.dumps(found)


@method("admin.vm.Remove", Access.EXECUTE)
async def remove(context: Context, dest: Domain) -> None:
    """Remove a halted qube with its volumes."""
    if dest.klass == Admin.class_name:
        raise ValueInvalidError(f"{dest.name} cannot be removed")
    async with context.disposables.none_of(dest.name):
        await context.qubes.remove(dest.name)
    context.files.remove(dest.uuid)
