"""Domain: a qube of any class in a system; references to other qubes, volumes, and everything that changes one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Protocol, Self

from casemate.model.assignments import Assignments
from casemate.model.changes import Change, PropertySet, VolumeChanged
from casemate.model.defaults import Default, FromSystem, FromTemplate
from casemate.model.features import Features
from casemate.model.kinds import DomainRef, Registry, Stored
from casemate.model.network import NetworkSettings
from casemate.model.properties import Property, Role
from casemate.model.qube import State
from casemate.model.tags import Tags
from casemate.model.volumes import VOLUME_NAMES, Volume, VolumeRule
from casemate.wire.admin import ADMIN
from casemate.wire.errors import VolumeNotFoundError, printable


class Neighbours(Protocol):
    """The qubes of a system, as one of them needs them (`domains.Domains`)."""

    def __contains__(self, name: object) -> bool: ...
    def __getitem__(self, name: str) -> Domain: ...

    def values(self) -> Collection[Domain]:
        """All qubes."""

    def is_shared(self, domain: Domain) -> bool:
        """Whether another system may have this qube's state too."""

    def took(self, domain: Domain) -> None:
        """The qube has a state of its own now."""


class PoolOfVolumes(Protocol):
    """What a qube needs to know of a pool that its volumes lie in (`system.PoolConfig`)."""

    @property
    def revisions_to_keep(self) -> int:
        """Older states kept of each volume that has no number of its own."""


class Whole(Registry, Protocol):
    """The system that a qube is in, as the qube needs it (`system.System`)."""

    @property
    def pools(self) -> Mapping[str, PoolOfVolumes]:
        """All storage pools by name."""

    @property
    def domains(self) -> Neighbours:
        """All qubes of the system, this one too."""

    def record(self, change: Change) -> None:
        """Note a change; refused where the system is a snapshot."""


def _reference(
    doc: str, default: Default | None = None, role: Role = Role.LOCAL, kept: str = "", tagged: bool = False
) -> Property[Domain | None]:
    """A property that names another qube, or none."""
    return Property(
        DomainRef(optional=True), role=role, default=default, absent=None, doc=doc, kept=kept, tagged=tagged
    )


class Domain(NetworkSettings):
    """A qube, in any class.

    References read as qubes (``domain.netvm``), are kept by name and follow the system the qube is in.
    """

    layout: ClassVar[Mapping[str, VolumeRule]] = MappingProxyType({})
    """The volumes that a new qube of this class gets."""
    icon_stem: ClassVar[str] = "appvm"
    template_roles: ClassVar[Role] = Role(0)
    """What a qube must be able to, to be a template of this class."""

    template: Property[Domain | None] = Property(
        DomainRef(), role=Role.BASED, absent=None, doc="Template that this qube is based on.", while_halted=True
    )
    netvm = _reference("Qube that provides network to this one; empty for none.", FromSystem("default_netvm"))
    default_dispvm = _reference(
        "Template of the disposables that this qube opens.", FromSystem("default_dispvm"), Role.MANAGED
    )
    guivm = _reference("Qube that shows this one's windows.", FromSystem("default_guivm"), tagged=True)
    audiovm = _reference("Qube that plays this one's sound.", FromSystem("default_audiovm"), tagged=True)
    management_dispvm = _reference(
        "Template of the disposable that manages this qube.",
        FromTemplate(FromSystem("management_dispvm")),
        kept="nothing manages qubes from inside yet",
    )
    relayvm = _reference("Qube that relays calls there.", role=Role.REMOTE)

    def __init__(self, system: Whole, values: Mapping[str, Stored], state: State | None = None) -> None:
        """A qube of ``system`` with these stored values; use ``System.add`` to make one."""
        self._system = system
        self._state = State(type(self), dict(values)) if state is None else state

    @classmethod
    def of_state(cls, system: Whole, state: State) -> Self:
        """The qube that a state describes, in a system; the state may be shared with other systems."""
        return cls(system, {}, state)

    @property
    def state(self) -> State:
        """What the qube is made of; only read."""
        return self._state

    @property
    def system(self) -> Whole:
        """The system this qube belongs to."""
        return self._system

    def base(self) -> Domain | None:
        return self.template

    def provider(self) -> Domain | None:
        return self.netvm

    def admin(self) -> Domain:
        return self._system.domains[ADMIN]

    def record(self, change: Change) -> None:
        self._system.record(change)
        self.own()
        if isinstance(change, PropertySet) and change.name == "template":
            self._reset_texts()

    def own(self) -> None:
        """Take a copy of the state if another system shares it, because it is about to change."""
        if self._system.domains.is_shared(self):
            self._state = self._state.copy()
            self._system.domains.took(self)
        self._state.text = None

    def _reset_texts(self) -> None:
        """Have qubes written anew whose volumes follow from their template: this one may be it."""
        for domain in self._system.domains.values():
            if any(one.snap_on_start for one in domain.configured_volumes()):
                domain.own()

    def icon_name(self) -> str:
        """The name of the icon: class and colour, or that of a service qube."""
        stem = "servicevm" if self.features.get("servicevm") else self.icon_stem
        return f"{stem}-{self.stored('label')}"

    @property
    def features(self) -> Features:
        """The qube's features."""
        return Features(self)

    @property
    def tags(self) -> Tags:
        """The qube's tags."""
        return Tags(self)

    @property
    def devices(self) -> Assignments:
        """The devices that the qube is to get."""
        return Assignments(self)

    @property
    def templates(self) -> Iterator[Domain]:
        """The template, its template, and so on."""
        domain = self.template
        for _ in range(8):
            if domain is None:
                return
            yield domain
            domain = domain.template

    def connected_vms(self) -> list[Domain]:
        """The qubes that get their network from this one, by name."""
        return sorted((d for d in self._system.domains.values() if d.netvm is self), key=lambda d: d.name)

    @property
    def volumes(self) -> Mapping[str, Volume | None]:
        """The qube's volumes by name; None for a volume that it does not have."""
        return MappingProxyType({name: self._volume(name) for name in VOLUME_NAMES})

    def volume(self, name: str) -> Volume:
        """The volume of that name; raises VolumeNotFoundError."""
        found = self._volume(name) if name in VOLUME_NAMES else None
        if found is None:
            raise VolumeNotFoundError(f"{self.name}: no volume {printable(name, 80)!r}")
        return found

    def _volume(self, name: str) -> Volume | None:
        volume = self._state.volumes.get(name)
        if volume is None:
            return None
        if not volume.own_revisions and volume.save_on_stop and volume.pool in self._system.pools:
            volume = replace(volume, revisions_to_keep=self._system.pools[volume.pool].revisions_to_keep)
        if not volume.snap_on_start:
            return volume
        base = self.template
        origin = None if base is None else base._volume(name)
        if origin is None:
            return volume
        source = origin.source if origin.snap_on_start else origin.vid
        size = volume.size if volume.save_on_stop else origin.size
        # A snapshot lies where its source lies: no driver can take one of another pool's volume.
        return replace(volume, source=source, size=size, pool=origin.pool)

    def set_volume(self, volume: Volume) -> None:
        """Replace the configuration of one volume, or add it."""
        if volume.name not in VOLUME_NAMES:
            raise VolumeNotFoundError(f"{self.name}: no volume {printable(volume.name, 80)!r}")
        self.record(VolumeChanged(self.name, volume.name))
        self._state.volumes[volume.name] = volume
        self._reset_texts()

    def configured_volumes(self) -> Collection[Volume]:
        """The volumes as configured, without the size and source that follow from the template."""
        return self._state.volumes.values()

    def load_state(
        self, features: Mapping[str, str], tags: Iterator[str] | set[str], volumes: Mapping[str, Volume]
    ) -> None:
        """Take over what a store read; announces nothing."""
        self._state.features = dict(features)
        self._state.tags = set(tags)
        self._state.volumes = dict(volumes)

    @property
    def uuid_text(self) -> str:
        """The UUID in its 36-character form."""
        return str(self.uuid)
