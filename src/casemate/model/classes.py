"""The six classes of qubes: the roles of each, its volumes, and the defaults that differ.

Nothing else knows which class has which properties or volumes. A seventh class would be one entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

from casemate.model.defaults import Computed, Default, Fixed, FromSystem
from casemate.model.domain import Domain
from casemate.model.properties import Property, Role
from casemate.model.volumes import (
    KEPT_PRIVATE,
    KEPT_ROOT,
    SNAPSHOT_PRIVATE,
    SNAPSHOT_ROOT,
    VOLATILE,
    VolumeRule,
)


class Admin(Domain):
    """The host itself, as a qube."""

    class_name = "AdminVM"
    roles = Role.ANY | Role.MANAGED
    icon_stem = "adminvm"
    defaults: ClassVar[Mapping[str, Default]] = MappingProxyType({"label": Fixed("black"), "updateable": Fixed(True)})


class Template(Domain):
    """Owner of a root disk that others are based on."""

    class_name = "TemplateVM"
    roles = Role.ANY | Role.MANAGED | Role.LOCAL | Role.TEMPLATE
    icon_stem = "templatevm"
    layout: ClassVar[Mapping[str, VolumeRule]] = MappingProxyType(
        {"root": KEPT_ROOT, "private": KEPT_PRIVATE, "volatile": VOLATILE}
    )
    defaults: ClassVar[Mapping[str, Default]] = MappingProxyType({"netvm": Fixed(None)})


class App(Domain):
    """Based on a template; keeps only its private disk."""

    class_name = "AppVM"
    roles = Role.ANY | Role.MANAGED | Role.LOCAL | Role.BASED | Role.DISPOSABLE_BASE
    template_roles = Role.TEMPLATE
    layout: ClassVar[Mapping[str, VolumeRule]] = MappingProxyType(
        {"root": SNAPSHOT_ROOT, "private": KEPT_PRIVATE, "volatile": VOLATILE}
    )


class Standalone(Domain):
    """Has disks of its own, based on nothing."""

    class_name = "StandaloneVM"
    roles = Role.ANY | Role.MANAGED | Role.LOCAL | Role.DISPOSABLE_BASE
    icon_stem = "standalonevm"
    layout: ClassVar[Mapping[str, VolumeRule]] = MappingProxyType(
        {"root": KEPT_ROOT, "private": KEPT_PRIVATE, "volatile": VOLATILE}
    )


class Disposable(Domain):
    """Based on a template of disposables; keeps nothing."""

    class_name = "DispVM"
    roles = Role.ANY | Role.MANAGED | Role.LOCAL | Role.BASED | Role.DISPOSABLE
    template_roles = Role.DISPOSABLE_BASE
    icon_stem = "dispvm"
    layout: ClassVar[Mapping[str, VolumeRule]] = MappingProxyType(
        {"root": SNAPSHOT_ROOT, "private": SNAPSHOT_PRIVATE, "volatile": VOLATILE}
    )
    defaults: ClassVar[Mapping[str, Default]] = MappingProxyType(
        {
            # Not the global one: what a disposable opens must not get out by another network than its own.
            "default_dispvm": Computed(lambda d: d.stored("template"), "its template"),
            "include_in_backups": Computed(lambda d: not d.auto_cleanup, "not auto_cleanup"),
        }
    )


class Remote(Domain):
    """Stands for a qube on another machine."""

    class_name = "RemoteVM"
    roles = Role.ANY | Role.REMOTE
    icon_stem = "remotevm"
    defaults: ClassVar[Mapping[str, Default]] = MappingProxyType({"include_in_backups": Fixed(False)})


CLASSES: Mapping[str, type[Domain]] = MappingProxyType(
    {cls.class_name: cls for cls in (Admin, App, Disposable, Remote, Standalone, Template)}
)
"""Every class by its name on the wire, in order of names."""


@cache
def all_properties() -> Mapping[str, Property[Any]]:
    """The properties of qubes of all classes by name, in order of names."""
    found = {name: prop for cls in CLASSES.values() for name, prop in cls.properties().items()}
    return MappingProxyType(dict(sorted(found.items())))


@cache
def tagged() -> tuple[str, ...]:
    """Names of the properties whose values are also tags."""
    return tuple(name for name, prop in all_properties().items() if prop.tagged)


@cache
def following(name: str) -> tuple[str, ...]:
    """Names of the properties whose default is the global property of that name, and nothing before it."""
    rules = {prop.name: prop.default for prop in all_properties().values()}
    return tuple(n for n, rule in rules.items() if isinstance(rule, FromSystem) and rule.name == name)
