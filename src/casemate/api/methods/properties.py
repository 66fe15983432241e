"""Methods of properties: the same for qubes (``admin.vm.property``) and the system (``admin.property``).

``admin.casemate.property.Describe`` answers with JSON all that a form needs, one object for each property of the qube::

    {"name": "memory", "type": "int", "value": "400", "is_default": true, "default": "400",
     "origin": "the template debian-13", "doc": "…", "syntax": "a whole number, …", "optional": false,
     "bounds": {"low": 1, "high": 16777216, "unit": "MiB"}, "setting": "free", "while_halted": false, "kept": ""}

``default`` is null where there is none. ``setting`` is ``free``, ``once`` (at creation) or ``read-only``. ``kept`` says
what a property of Qubes OS that does nothing here waits for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from casemate.api.context import Context
from casemate.api.live import value
from casemate.api.method import Access, method
from casemate.engine.power_table import Command, decide
from casemate.host.hypervisor import PowerState
from casemate.model.classes import following, tagged
from casemate.model.domain import Domain
from casemate.model.properties import Holder, Setting
from casemate.model.system import System
from casemate.wire.admin import ADMIN, PropertyValue, build_properties, build_property
from casemate.wire.errors import NotHaltedError, PermissionDeniedError, PropertyValueError


def default(holder: Holder, name: str) -> str:
    """The answer to GetDefault: empty for a property without default."""
    prop = holder.declaration(name)
    if holder.default_rule(name) is None:
        return ""
    return build_property(PropertyValue(None, prop.kind.tag, holder.default_text(name)))


def explain(holder: Holder, name: str) -> str:
    """What a property is for, what it takes, where its default comes from."""
    prop = holder.declaration(name)
    doc = f"{prop.doc} It has no effect here: {prop.kept}." if prop.kept else prop.doc
    if prop.setting is Setting.READ_ONLY:
        return f"{doc} It cannot be changed."
    if prop.setting is Setting.ONCE:
        return f"{doc} It cannot be changed after creation."
    rule = holder.default_rule(name)
    origin = "It has no default." if rule is None else f"Default: {rule.describe()}."
    return f"{doc} Value: {prop.kind.syntax()}. {origin}"


def _names(holder: Holder) -> str:
    return "".join(f"{name}\n" for name in holder.properties())


def _all(context: Context, holder: Holder) -> str:
    return build_properties({name: value(context, holder, name) for name in holder.properties()})


@method("admin.vm.property.List", Access.READ)
def list_of_qube(dest: Domain) -> str:
    """The names of the qube's properties."""
    return _names(dest)


@method("admin.property.List", Access.READ)
def list_of_system(system: System) -> str:
    """The names of the global properties."""
    return _names(system)


@method("admin.vm.property.Get", Access.READ)
def get_of_qube(context: Context, dest: Domain, arg: str) -> str:
    """The value of a property of the qube."""
    return build_property(value(context, dest, arg))


@method("admin.property.Get", Access.READ)
def get_of_system(context: Context, system: System, arg: str) -> str:
    """The value of a global property."""
    return build_property(value(context, system, arg))


@method("admin.vm.property.GetAll", Access.READ)
def all_of_qube(context: Context, dest: Domain) -> str:
    """All properties of the qube, a line for each."""
    return _all(context, dest)


@method("admin.property.GetAll", Access.READ)
def all_of_system(context: Context, system: System) -> str:
    """All global properties, a line for each."""
    return _all(context, system)


@method("admin.vm.property.GetDefault", Access.READ)
def default_of_qube(dest: Domain, arg: str) -> str:
    """The default of a property of the qube."""
    return default(dest, arg)


@method("admin.property.GetDefault", Access.READ)
def default_of_system(system: System, arg: str) -> str:
    """The default of a global property."""
    return default(system, arg)


@method("admin.vm.property.Help", Access.READ)
def help_of_qube(dest: Domain, arg: str) -> str:
    """What a property of the qube is for."""
    return explain(dest, arg)


@method("admin.casemate.property.Describe", Access.READ)
def describe(context: Context, dest: Domain) -> str:
    """All properties of the qube: values, defaults and where they come from, and what each takes, in one answer."""
    return json.dumps([_described(context, dest, name) for name in dest.properties()])


def _described(context: Context, holder: Holder, name: str) -> dict[str, object]:
    prop, rule, now = holder.declaration(name), holder.default_rule(name), value(context, holder, name)
    return {
        "name": name, "type": prop.kind.tag, "value": now.text, "is_default": now.default,
        "default": None if rule is None else holder.default_text(name),
        "origin": "" if rule is None else rule.origin(holder, name),
        "doc": prop.doc, "syntax": prop.kind.syntax(), "optional": prop.kind.optional,
        "bounds": dict(prop.kind.bounds()), "setting": prop.setting.value, "while_halted": prop.while_halted,
        "kept": prop.kept,
    }  # fmt: skip


@method("admin.property.Help", Access.READ)
def help_of_system(system: System, arg: str) -> str:
    """What a global property is for."""
    return explain(system, arg)


def _check_halted(context: Context, dest: Domain, name: str) -> None:
    state = PowerState(context.state(dest))
    if name == "name":
        decide(Command.RENAME, dest.name, state)
    if dest.declaration(name).while_halted:
        try:
            decide(Command.CHANGE, dest.name, state)
        except NotHaltedError as error:
            raise NotHaltedError(f"{error}: {name} can be changed only while the qube is halted") from None


def _check_seen(holder: Holder, name: str, text: str, sees: Callable[[str], bool]) -> None:
    """Refuse a reference to a qube that the caller may not see, in the same way as one to a qube that does not
    exist."""
    if text and holder.declaration(name).kind.tag == "vm" and not sees(text):
        raise PermissionDeniedError


def _check_possible(context: Context, holder: Holder, name: str, text: str) -> None:
    """Refuse a value with which no qube could start on this host; a property that takes none keeps its value then."""
    if why := context.possible.refusal(name, text):
        raise PropertyValueError(f"{holder.title()}: {name}: {why}")


def _tag(domains: Iterable[Domain], changed: str) -> None:
    """Make the tags ``PROPERTY-VALUE`` of qubes what a property says now."""
    for domain in domains:
        if not domain.has(changed):
            continue
        found = domain.stored(changed)
        wanted = f"{changed}-{found}" if found not in (None, ADMIN) else None
        for tag in [tag for tag in domain.tags if tag.startswith(f"{changed}-") and tag != wanted]:
            domain.tags.remove(tag)
        if wanted is not None:
            domain.tags.add(wanted)


def _follow(system: System, changed: str) -> None:
    """A global property was changed: the tags of qubes that have it as a default change with it."""
    for name in set(following(changed)).intersection(tagged()):
        _tag(list(system.domains.values()), name)


@method("admin.vm.property.Set", Access.WRITE)
def set_of_qube(context: Context, dest: Domain, sees: Callable[[str], bool], arg: str, payload: str = "") -> None:
    """Set a property of the qube."""
    _check_halted(context, dest, arg)
    _check_seen(dest, arg, payload, sees)
    _check_possible(context, dest, arg, payload)
    dest.set_text(arg, payload)
    _tag([dest] if arg in tagged() else (), arg)


@method("admin.property.Set", Access.WRITE)
def set_of_system(context: Context, system: System, sees: Callable[[str], bool], arg: str, payload: str = "") -> None:
    """Set a global property."""
    _check_seen(system, arg, payload, sees)
    _check_possible(context, system, arg, payload)
    system.set_text(arg, payload)
    _follow(system, arg)


@method("admin.vm.property.Reset", Access.WRITE)
def reset_of_qube(context: Context, dest: Domain, arg: str) -> None:
    """Give a property of the qube its default again."""
    _check_halted(context, dest, arg)
    _check_possible(context, dest, arg, dest.default_text(arg) if dest.default_rule(arg) is not None else "")
    dest.reset(arg)
    _tag([dest] if arg in tagged() else (), arg)


@method("admin.property.Reset", Access.WRITE)
def reset_of_system(context: Context, system: System, arg: str) -> None:
    """Give a global property its default again."""
    _check_possible(context, system, arg, system.default_text(arg) if system.default_rule(arg) is not None else "")
    system.reset(arg)
    _follow(system, arg)
