"""System: all qubes, labels and pools and the global properties; what one transaction changes as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from uuid import UUID

from casemate.model import inheritance
from casemate.model.changes import (
    Change,
    DomainAdded,
    DomainRemoved,
    LabelAdded,
    LabelRemoved,
    PoolAdded,
    PoolChanged,
    PoolRemoved,
)
from casemate.model.classes import CLASSES, Admin, Disposable
from casemate.model.defaults import FromSystem, Live, Source
from casemate.model.domain import Domain
from casemate.model.domains import Domains
from casemate.model.kinds import Bool, DomainRef, Int, OptionalText, Stored, Text
from casemate.model.labels import BUILTIN, LAST_BUILTIN, Label
from casemate.model.properties import Holder, Property, Setting
from casemate.model.qube_settings import KERNEL_NAME
from casemate.model.volumes import POOL_REVISIONS
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import (
    AlreadyExistsError,
    LabelNotFoundError,
    NoTemplateError,
    NotFoundError,
    PoolNotFoundError,
    QubeError,
    ValueInvalidError,
    printable,
)

_POOL_NAME = r"[a-zA-Z][a-zA-Z0-9_.-]{0,62}"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A storage pool as configured: its driver and the driver's own options."""

    name: str
    driver: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def revisions_to_keep(self) -> int:
        """Older states to be kept of each volume that nobody chose another number for."""
        text = self.options.get("revisions_to_keep", "")
        return int(text) if text.lstrip("-").isdecimal() else POOL_REVISIONS


def _reference(doc: str, default: str | None = None, kept: str = "") -> Property[Domain | None]:
    return Property(DomainRef(optional=True), default=default, doc=doc, kept=kept)


def _pool(doc: str, default: str | None = None, kept: str = "") -> Property[str]:
    rule = FromSystem("default_pool") if default is None else default
    return Property(Text(_POOL_NAME, limit=63, what="pool"), default=rule, doc=doc, kept=kept)


def _seconds(doc: str, default: int, most: int) -> Property[int]:
    return Property(Int(1, most, "seconds"), default=default, doc=doc)


def _of_host(kind: Int, doc: str) -> Property[int]:
    return Property(kind, default=Live(Source.HOST, 0), setting=Setting.READ_ONLY, doc=doc)


CLOCK_FEATURE = "service.clocksync"
"""Feature of the ``clockvm``: in that qube, ``/run/qubes-service/clocksync`` tells its time service to run."""


class System(Holder):
    """All qubes, labels, pools and global properties.

    A snapshot is frozen: to change it is a fault of the program. A transaction works on a copy, which is dropped if
    anything fails; ``changes`` collects what it did.
    """

    check_updates_vm = Property(
        Bool(), default=True, doc="Whether qubes look for updates.", kept="qubes do not look for updates yet"
    )
    clockvm = _reference(
        "Qube whose clock is right: who asks for the time gets this one's, or the host's if none is set."
    )
    default_audiovm = _reference("Default of a qube's audiovm.", ADMIN)
    default_dispvm = _reference("Default of a qube's default_dispvm.")
    default_guivm = _reference("Default of a qube's guivm.", ADMIN)
    default_kernel = Property(
        OptionalText(KERNEL_NAME, limit=63, what="name of a kernel"), default=None, doc="Default of a qube's kernel."
    )
    default_netvm = _reference("Default of a qube's netvm.")
    default_pool = _pool("Pool of the volumes of new qubes.", "default")
    default_pool_kernel = _pool("Pool of kernel volumes.", kept="kernels are volumes of the pool linux-kernel")
    default_pool_private = _pool("Pool of private volumes.")
    default_pool_root = _pool("Pool of root volumes.")
    default_pool_volatile = _pool("Pool of volatile volumes.")
    default_qrexec_timeout = _seconds("Default of a qube's qrexec_timeout.", 60, 86400)
    default_shutdown_timeout = _seconds("Default of a qube's shutdown_timeout.", 60, 86400)
    default_template = _reference("Template of new qubes.")
    management_dispvm = _reference(
        "Default of a qube's management_dispvm.", kept="nothing manages qubes from inside yet"
    )
    maxmem = _of_host(Int(unit="MiB"), "Memory of the host.")
    no_cpus = _of_host(Int(), "Number of the host's processors.")
    stats_interval = _seconds("Time between two bursts of statistics.", 3, 3600)
    updatevm = _reference("Qube that downloads updates.", kept="the policy of qubes.UpdatesProxy says which")

    def __init__(self) -> None:
        self._values = {}
        self.domains = Domains(self)
        self._labels: dict[str, Label] = {label.name: label for label in BUILTIN}
        self._pools: dict[str, PoolConfig] = {}
        self.next_qid = 1
        self.generation = 0
        self.unknown: tuple[tuple[str, bytes], ...] = ()
        self.unknown_attributes: tuple[tuple[str, str, str], ...] = ()
        """Attributes that are not known here: (place, such as ``property:NAME``; key; value)."""
        self.changes: list[Change] = []
        self.frozen = False

    @classmethod
    def initial(cls) -> System:
        """A new system: the admin qube, the built-in labels, one pool of qcow2 files."""
        system = cls()
        system._pools["default"] = PoolConfig("default", "qcow2")
        system.domains.insert(Admin(system, ADMIN_VALUES))
        return system

    def copy(self) -> System:
        """A copy that can be changed; this one stays as it is."""
        new = System()
        new._values = self._values.copy()
        new._labels = self._labels.copy()
        new._pools = self._pools.copy()
        new.next_qid = self.next_qid
        new.generation = self.generation
        new.unknown = self.unknown
        new.unknown_attributes = self.unknown_attributes
        self.domains.copy_to(new.domains)
        return new

    @property
    def system(self) -> System:
        """Itself."""
        return self

    def title(self) -> str:
        return "system"

    def subject(self) -> str | None:
        return None

    def set(self, name: str, stored: Stored) -> None:
        """Set a global property. A new ``clockvm`` also gets the feature that tells programs in it to keep the time,
        and the one before loses it, as in Qubes OS."""
        with self._clock_follows(name):
            super().set(name, stored)

    def reset(self, name: str) -> None:
        """Give a global property its default again, with the same consequence for ``clockvm``."""
        with self._clock_follows(name):
            super().reset(name)

    @contextmanager
    def _clock_follows(self, name: str) -> Iterator[None]:
        before = self.clockvm
        yield
        after = self.clockvm
        if name != "clockvm":
            return
        if before is not None and before is not after and before.features.get(CLOCK_FEATURE):
            before.features.remove(CLOCK_FEATURE)
        if after is not None and CLOCK_FEATURE not in after.features:
            after.features.set(CLOCK_FEATURE, "1")

    def record(self, change: Change) -> None:
        if self.frozen:
            raise RuntimeError("a snapshot must not be changed; use Store.write()")
        self.changes.append(change)

    @property
    def admin(self) -> Domain:
        """The admin qube."""
        return self.domains[ADMIN]

    @property
    def labels(self) -> Mapping[str, Label]:
        """All labels by name, in order of their numbers."""
        return MappingProxyType(self._labels)

    @property
    def pools(self) -> Mapping[str, PoolConfig]:
        """All storage pools by name."""
        return MappingProxyType(self._pools)

    def add(
        self,
        klass: str | type[Domain],
        name: str,
        *,
        uuid: UUID,
        label: str = "red",
        template: str | None = None,
        pools: Mapping[str, str] | None = None,
        dispid: int | None = None,
        creator: str = ADMIN,
        properties: Mapping[str, Stored] | None = None,
    ) -> Domain:
        """A new qube with the volumes of its class.

        ``template`` None means the default template, for a class that needs one. ``pools`` names the pool of a
        volume, and under ``""`` that of all others. ``properties`` are set before the qube is announced. A disposable
        takes over settings, features and tags of its template (``inheritance.py``).
        """
        cls = CLASSES.get(klass) if isinstance(klass, str) else klass
        if cls is None or cls is Admin:
            raise ValueInvalidError(f"Not a class for new qubes: {printable(str(klass), 40)!r}")
        values: dict[str, Stored] = {"name": str(names.new_qube_name(name)), "qid": self.next_qid, "uuid": uuid}
        if label not in self._labels:
            raise LabelNotFoundError(f"No such label: {printable(label, 80)!r}; there are {', '.join(self._labels)}")
        values["label"] = label
        if any(name.lower() == other.lower() for other in self.domains if other != name):
            raise AlreadyExistsError(f"A qube exists whose name differs from {name!r} only in case")
        if cls.has("template"):
            base = template or self.stored("default_template")
            if base is None:
                raise NoTemplateError(
                    f"{cls.class_name} {name} needs a template, and there is none yet: casemate template build"
                    if not any(d.klass == "TemplateVM" for d in self.domains.values())
                    else f"{cls.class_name} {name} needs a template: name one, or set default_template"
                )
            if self.domains.get(base) is None:
                raise NotFoundError(str(base))
            values["template"] = base
        elif template is not None:
            raise ValueInvalidError(f"A qube of class {cls.class_name} has no template")
        if dispid is not None:
            values["dispid"] = dispid
        domain = cls(self, values)
        volumes = {}
        for volume, rule in cls.layout.items():
            pool = (pools or {}).get(volume) or (pools or {}).get("") or str(self.stored(f"default_pool_{volume}"))
            self.pool(pool)
            volumes[volume] = rule.new(domain.name, volume, pool)
        inherited: Mapping[str, Stored] = {}
        features: dict[str, str] = {}
        tags = {f"{inheritance.CREATED_BY}{creator}"}
        if cls is Disposable:
            parent = self.domains[str(values["template"])]
            inherited, features = inheritance.properties(parent, cls), inheritance.features(parent)
            tags |= inheritance.tags(parent)
        domain.load_state(features, tags, volumes)
        self.domains.require_free(domain.name, uuid, domain.qid)
        self.record(DomainAdded(domain.name, cls.class_name))
        self.domains.insert(domain)
        before = len(self.changes)
        for key, stored in {**inherited, **(properties or {})}.items():
            domain.set(key, stored)
        del self.changes[before:]
        self.next_qid += 1
        return domain

    def remove(self, name: str) -> None:
        """Remove a qube. The transaction will fail where something still refers to it."""
        domain = self.domains[name]
        if isinstance(domain, Admin):
            raise QubeError(f"{name} cannot be removed")
        self.record(DomainRemoved(domain.name, domain.klass))
        self.domains.discard(domain)

    def add_label(self, name: str, color: str) -> Label:
        """A new label with the next free number."""
        name, color = str(names.label_name(name)), names.color(color).lower()
        if name in self._labels:
            raise AlreadyExistsError(f"A label named {name!r} exists already")
        index = max(LAST_BUILTIN, *(label.index for label in self._labels.values())) + 1
        label = Label(index, name, color)
        self.record(LabelAdded(name))
        self._labels[name] = label
        return label

    def remove_label(self, name: str) -> None:
        """Remove a label that is not built in. The transaction will fail where a qube has it."""
        label = self._labels.get(name)
        if label is None:
            raise LabelNotFoundError(f"No such label: {printable(name, 80)!r}")
        if label.builtin:
            raise ValueInvalidError(f"Label {name!r} is built in")
        self.record(LabelRemoved(name))
        del self._labels[name]

    def pool(self, name: str) -> PoolConfig:
        """The pool of that name; raises PoolNotFoundError."""
        try:
            return self._pools[name]
        except KeyError:
            raise PoolNotFoundError(f"No such pool: {printable(name, 80)!r}") from None

    def add_pool(self, name: str, driver: str, options: Mapping[str, str]) -> PoolConfig:
        """A new storage pool."""
        name = str(names.pool_name(name))
        if name in self._pools:
            raise AlreadyExistsError(f"A pool named {name!r} exists already")
        self.record(PoolAdded(name))
        self._pools[name] = PoolConfig(name, driver, dict(options))
        return self._pools[name]

    def set_pool_option(self, name: str, option: str, value: str) -> None:
        """Change one option of a pool."""
        pool = self.pool(name)
        self.record(PoolChanged(name))
        self._pools[name] = replace(pool, options={**pool.options, option: value})

    def remove_pool(self, name: str) -> None:
        """Remove a pool. The transaction will fail where it holds volumes."""
        self.pool(name)
        self.record(PoolRemoved(name))
        del self._pools[name]

    def load_tables(
        self, values: Mapping[str, Stored], labels: Mapping[str, Label], pools: Mapping[str, PoolConfig]
    ) -> None:
        """Take over what a store read: global properties, labels, pools. Records no change."""
        self._values = dict(values)
        self._labels = {label.name: label for label in sorted(labels.values(), key=lambda one: one.index)}
        self._pools = dict(pools)


ADMIN_VALUES: Mapping[str, Stored] = MappingProxyType({"name": ADMIN, "qid": 0, "uuid": UUID(int=0)})
"""The identity of the admin qube, the same in every system."""
