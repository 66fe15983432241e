"""Invariants: what must hold when a transaction ends. Each function raises an error that names what does not hold.

A relation between two qubes is checked for the whole system, so it does not matter which of its ends was changed. Which
changes can break an invariant is declared with it; after others it is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from casemate.model.changes import (
    Change,
    DeviceAssigned,
    DomainAdded,
    DomainRemoved,
    LabelRemoved,
    PoolRemoved,
    PropertyReset,
    PropertySet,
    VolumeChanged,
)
from casemate.model.classes import CLASSES
from casemate.model.domain import Domain
from casemate.model.properties import Holder
from casemate.model.system import System
from casemate.model.volumes import VOLUME_NAMES
from casemate.wire.errors import (
    CasemateError,
    InUseError,
    LabelInUseError,
    PoolInUseError,
    ValueInvalidError,
    printable,
)


def uses_of(system: System, name: str) -> list[str]:
    """What refers to a qube by name: ``QUBE.PROPERTY`` or ``system.PROPERTY``, set values only."""
    holders: list[Holder] = [system, *system.domains.values()]
    return [f"{h.title()}.{p.name}" for h in holders for p in h.references() if h.values().get(p.name) == name]


def references_exist(system: System) -> None:
    """What a set property refers to exists."""
    holders: list[Holder] = [system, *system.domains.values()]
    for holder in holders:
        values = holder.values()
        for prop in holder.references():
            target = values.get(prop.name)
            if target is not None and target not in system.domains:
                raise InUseError(f"{target} is used as {prop.name} of {holder.title()}")


def labels_exist(system: System) -> None:
    """Every qube has a label, and it exists."""
    for domain in system.domains.values():
        label = domain.stored("label")
        if label not in system.labels:
            raise LabelInUseError(f"Label {label!r} is used by {domain.name}")


def pools_exist(system: System) -> None:
    """Every volume and every default lies in a pool that exists."""
    for domain in system.domains.values():
        for volume in domain.configured_volumes():
            if volume.pool not in system.pools:
                raise PoolInUseError(f"Pool {volume.pool!r} holds {domain.name}'s volume {volume.name}")
    for name in _POOL_DEFAULTS:
        if system.stored(name) not in system.pools:
            raise PoolInUseError(
                f"{name} must be a pool that there is, not {printable(str(system.stored(name)), 80)!r}; "
                f"there are {', '.join(sorted(system.pools))}"
            )


def templates_fit(system: System) -> None:
    """A template is of a class that can be one, a template of disposables is marked as such."""
    for domain in system.domains.values():
        base = domain.template
        if base is None:
            if domain.has("template"):
                raise ValueInvalidError(f"{domain.name} has no template")
            continue
        if not base.roles & domain.template_roles:
            raise ValueInvalidError(f"{base.name} ({base.klass}) cannot be the template of {domain.name}")
        if base.has("template_for_dispvms") and not base.template_for_dispvms:
            raise InUseError(f"{base.name} must be a template of disposables while {domain.name} is based on it")
    default = system.default_template
    if default is not None and not default.has("appvm_default_bootmode"):
        raise ValueInvalidError(f"{default.name} ({default.klass}) cannot be the default template")


def disposable_templates_fit(system: System) -> None:
    """What opens disposables names a template of disposables."""
    holders: list[Holder] = [system, *system.domains.values()]
    for holder in holders:
        for name in ("default_dispvm", "management_dispvm"):
            target = holder.values().get(name)
            if target is not None and not system.domains[str(target)].template_for_dispvms:
                raise ValueInvalidError(f"{holder.title()}: {name} {target} is not a template of disposables")


def net_qubes_fit(system: System) -> None:
    """A net qube provides network."""
    for domain in system.domains.values():
        target = domain.netvm
        if target is not None and not target.provides_network:
            raise ValueInvalidError(f"{target.name} does not provide network, but is netvm of {domain.name}")
    default = system.default_netvm
    if default is not None and not default.provides_network:
        raise ValueInvalidError(f"{default.name} does not provide network, but is default_netvm")


def no_netvm_loop(system: System) -> None:
    """Following netvm from any qube comes to an end."""
    done: set[str] = set()
    for domain in system.domains.values():
        path: list[str] = []
        step: Domain | None = domain
        while step is not None and step.name not in done:
            if step.name in path:
                raise ValueInvalidError(f"netvm loop: {' -> '.join([*path, step.name])}")
            path.append(step.name)
            step = step.netvm
        done.update(path)


def device_backends_exist(system: System) -> None:
    """What offers an assigned device exists."""
    for state in system.domains.states():
        for device in state.devices:
            if device.backend not in system.domains:
                raise InUseError(
                    f"{device.backend} offers {device.devclass} device {device}, assigned to {state.values['name']}"
                )


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that must hold, and the changes that can break it."""

    require: Callable[[System], None]
    """Raises where it does not hold."""
    properties: frozenset[str] = frozenset()
    changes: tuple[type[Change], ...] = (DomainAdded,)

    def concerns(self, change: Change) -> bool:
        """Whether a change can have broken it."""
        if isinstance(change, PropertySet | PropertyReset):
            return change.name in self.properties
        return isinstance(change, self.changes)


def _reference_names() -> frozenset[str]:
    holders: tuple[type[Holder], ...] = (System, *CLASSES.values())
    return frozenset(p.name for holder in holders for p in holder.references())


_POOL_DEFAULTS = ("default_pool", *(f"default_pool_{volume}" for volume in VOLUME_NAMES))

INVARIANTS: tuple[Invariant, ...] = (
    Invariant(references_exist, _reference_names(), (DomainAdded, DomainRemoved)),
    Invariant(labels_exist, frozenset({"label"}), (DomainAdded, LabelRemoved)),
    Invariant(pools_exist, frozenset(_POOL_DEFAULTS), (DomainAdded, VolumeChanged, PoolRemoved)),
    Invariant(templates_fit, frozenset({"template", "template_for_dispvms", "default_template"})),
    Invariant(disposable_templates_fit, frozenset({"default_dispvm", "management_dispvm", "template_for_dispvms"})),
    Invariant(no_netvm_loop, frozenset({"netvm", "default_netvm"})),
    Invariant(device_backends_exist, frozenset(), (DeviceAssigned, DomainRemoved)),
    Invariant(net_qubes_fit, frozenset({"netvm", "default_netvm", "provides_network"})),
)
"""All invariants. Those that others rely on come first: a loop is only looked for among qubes that exist."""


def check(system: System, changes: Sequence[Change] | None = None) -> None:
    """Raise the error of the first invariant that does not hold; with ``changes`` only those they can have broken."""
    for invariant in INVARIANTS:
        if changes is None or any(invariant.concerns(change) for change in changes):
            invariant.require(system)


def problems(system: System) -> list[str]:
    """What does not hold, one message for each invariant; empty for a sound system."""
    found = []
    for invariant in INVARIANTS:
        try:
            invariant.require(system)
        except CasemateError as error:
            found.append(str(error))
            if invariant.require is references_exist:
                break
    return found
