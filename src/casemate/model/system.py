"""System: all qubes and the global settings; what one transaction changes as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast
from uuid import UUID

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
from casemate.model.classes import CLASSES, Admin
from casemate.model.defaults import FromSystem
from casemate.model.domain import NIL, Domain
from casemate.model.kinds import Bool, DomainRef, Int, OptionalText, Stored, Text
from casemate.model.labels import BUILTIN, LAST_BUILTIN, Label
from casemate.model.properties import Holder, Property, Setting
from casemate.model.state import State
from casemate.wire import names
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

ADMIN = "dom0"
_POOL_NAME = r"[a-zA-Z][a-zA-Z0-9_.-]{0,62}"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A storage pool as configured: its driver and the driver's own options."""

    name: str
    driver: str
    options: Mapping[str, str] = field(default_factory=dict)


class Domains(Mapping[str, Domain]):
    """All qubes: by name, by UUID, by qid; each lookup is one step however many there are.

    What is kept is states; a qube is made of its state when somebody asks for it, and is the same from then on. So
    copying a system costs little, and old systems are not kept alive by new ones.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._states: dict[str, State] = {}
        self._by_uuid: dict[UUID, str] = {}
        self._by_qid: dict[int, str] = {}
        self._made: dict[str, Domain] = {}
        self._own: set[str] = set()

    def copy_to(self, other: Domains) -> None:
        """Give ``other`` the same qubes; from now on both copy a state before they change it."""
        other._states = self._states.copy()
        other._by_uuid = self._by_uuid.copy()
        other._by_qid = self._by_qid.copy()
        self._own.clear()

    def is_shared(self, domain: Domain) -> bool:
        """Whether another system may have this qube's state too. One not inserted yet is nobody else's."""
        name = str(domain.state.values["name"])
        return name not in self._own and self._states.get(name) is domain.state

    def took(self, domain: Domain) -> None:
        """The qube has a state of its own now."""
        name = str(domain.state.values["name"])
        self._states[name] = domain.state
        self._own.add(name)

    def states(self) -> Collection[State]:
        """The states of all qubes; only read. The quick way to look at every qube."""
        return self._states.values()

    def state(self, name: str) -> State | None:
        """The state of the qube of that name, only read; None where there is none."""
        return self._states.get(name)

    def __getitem__(self, name: str) -> Domain:
        found = self._made.get(name)
        if found is not None:
            return found
        state = self._states.get(name)
        if state is None:
            raise NotFoundError(name)
        # setdefault is one step, so that threads which ask at the same time get the same object.
        return self._made.setdefault(name, state.klass.of_state(self._system, state))

    def get(self, name: object, default: object = None) -> Domain | None:  # type: ignore[override]
        """The qube of that name, or None."""
        return self[str(name)] if name in self._states else None

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def by_uuid(self, uuid: UUID) -> Domain:
        """The qube with that UUID; raises NotFoundError."""
        try:
            return self[self._by_uuid[uuid]]
        except KeyError:
            raise NotFoundError(f"uuid:{uuid}") from None

    def by_qid(self, qid: int) -> Domain:
        """The qube with that number; raises NotFoundError."""
        try:
            return self[self._by_qid[qid]]
        except KeyError:
            raise NotFoundError(f"qid {qid}") from None

    def find(self, text: str) -> Domain:
        """The qube named ``NAME`` or ``uuid:UUID``; raises NotFoundError, or ValueInvalidError for neither form."""
        if text.startswith("uuid:"):
            return self.by_uuid(UUID(names.uuid_text(text[5:])))
        return self[str(names.qube_name(text))]

    def ordered(self) -> list[Domain]:
        """The admin qube first, then the others by name."""
        return [self[name] for name in sorted(self._states, key=lambda n: (self._states[n].klass is not Admin, n))]

    def require_free(self, name: str, uuid: UUID, qid: int) -> None:
        """Raise AlreadyExistsError where a qube has that name, UUID or number."""
        if name in self._states:
            raise AlreadyExistsError(f"A qube named {name!r} exists already")
        if uuid in self._by_uuid:
            raise AlreadyExistsError(f"UUID {uuid} is that of {self._by_uuid[uuid]!r}")
        if qid in self._by_qid:
            raise AlreadyExistsError(f"qid {qid} is that of {self._by_qid[qid]!r}")

    def insert(self, domain: Domain) -> None:
        """Add a qube to the indexes; raises AlreadyExistsError. Use ``System.add`` to make qubes."""
        name = self.insert_state(domain.state)
        self._made[name] = domain
        self._own.add(name)

    def insert_state(self, state: State) -> str:
        """Add the qube that a state describes (which may be that of another system too); its name."""
        name = cast(str, state.values["name"])
        uuid, qid = cast(UUID, state.values["uuid"]), cast(int, state.values["qid"])
        self.require_free(name, uuid, qid)
        self._states[name] = state
        self._by_uuid[uuid] = name
        self._by_qid[qid] = name
        return name

    def replace_state(self, state: State, text: bytes) -> bool:
        """Let a state take the place of the one with ``text``; False, and nothing done, where it is another qube's."""
        old = self._states.get(cast(str, state.values["name"]))
        if old is None or old.text != text or old.klass is not state.klass:
            return False
        if any(old.values[key] != state.values[key] for key in ("name", "uuid", "qid")):
            return False
        self._states[cast(str, state.values["name"])] = state
        return True

    def discard(self, domain: Domain) -> None:
        """Take a qube out of the indexes."""
        name = domain.name
        del self._states[name], self._by_uuid[domain.uuid], self._by_qid[domain.qid]
        self._made.pop(name, None)
        self._own.discard(name)


class System(Holder):
    """All qubes, labels, pools and global properties.

    A snapshot is frozen: changing it is an error of the program. A transaction works on a copy, which is dropped if
    anything fails; ``changes`` collects what it did.
    """

    check_updates_vm = Property(Bool(), default=True, doc="Whether qubes look for updates.")
    clockvm = Property(DomainRef(optional=True), default=None, doc="Qube that knows the time.")
    default_audiovm = Property(DomainRef(optional=True), default=ADMIN, doc="Default of a qube's audiovm.")
    default_dispvm = Property(DomainRef(optional=True), default=None, doc="Default of a qube's default_dispvm.")
    default_guivm = Property(DomainRef(optional=True), default=ADMIN, doc="Default of a qube's guivm.")
    default_kernel = Property(
        OptionalText(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}", limit=63, what="name of a kernel"),
        default=None,
        doc="Default of a qube's kernel.",
    )
    default_netvm = Property(DomainRef(optional=True), default=None, doc="Default of a qube's netvm.")
    default_pool = Property(
        Text(_POOL_NAME, limit=63, what="pool"), default="default", doc="Pool of the volumes of new qubes."
    )
    default_pool_kernel = Property(
        Text(_POOL_NAME, limit=63, what="pool"), default=FromSystem("default_pool"), doc="Pool of kernel volumes."
    )
    default_pool_private = Property(
        Text(_POOL_NAME, limit=63, what="pool"), default=FromSystem("default_pool"), doc="Pool of private volumes."
    )
    default_pool_root = Property(
        Text(_POOL_NAME, limit=63, what="pool"), default=FromSystem("default_pool"), doc="Pool of root volumes."
    )
    default_pool_volatile = Property(
        Text(_POOL_NAME, limit=63, what="pool"), default=FromSystem("default_pool"), doc="Pool of volatile volumes."
    )
    default_qrexec_timeout = Property(Int(1, 86400, "seconds"), default=60, doc="Default of a qube's qrexec_timeout.")
    default_shutdown_timeout = Property(
        Int(1, 86400, "seconds"), default=60, doc="Default of a qube's shutdown_timeout."
    )
    default_template = Property(DomainRef(optional=True), default=None, doc="Template of new qubes.")
    management_dispvm = Property(DomainRef(optional=True), default=None, doc="Default of a qube's management_dispvm.")
    maxmem = Property(Int(unit="MiB"), default=0, setting=Setting.READ_ONLY, doc="Memory of the host.")
    no_cpus = Property(Int(), default=0, setting=Setting.READ_ONLY, doc="Number of the host's processors.")
    stats_interval = Property(Int(1, 3600, "seconds"), default=3, doc="Time between two bursts of statistics.")
    updatevm = Property(DomainRef(optional=True), default=None, doc="Qube that downloads updates.")

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
        """A copy that may be changed without this one noticing."""
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
        volume, and under ``""`` that of all others. ``properties`` are set before the qube is announced.
        """
        cls = CLASSES.get(klass) if isinstance(klass, str) else klass
        if cls is None or cls is Admin:
            raise ValueInvalidError(f"Not a class for new qubes: {printable(str(klass), 40)!r}")
        values: dict[str, Stored] = {"name": str(names.new_qube_name(name)), "qid": self.next_qid, "uuid": uuid}
        if label not in self._labels:
            raise LabelNotFoundError(f"No such label: {printable(label, 80)!r}")
        values["label"] = label
        if any(name.lower() == other.lower() for other in self.domains if other != name):
            raise AlreadyExistsError(f"A qube exists whose name differs from {name!r} only in case")
        if cls.has("template"):
            base = template or self.stored("default_template")
            if base is None:
                raise NoTemplateError(f"A {cls.class_name} needs a template and there is no default")
            if self.domains.get(base) is None:
                raise NotFoundError(str(base))
            values["template"] = base
        elif template is not None:
            raise ValueInvalidError(f"A {cls.class_name} has no template")
        if dispid is not None:
            values["dispid"] = dispid
        domain = cls(self, values)
        volumes = {}
        for volume, rule in cls.layout.items():
            pool = (pools or {}).get(volume) or (pools or {}).get("") or str(self.stored(f"default_pool_{volume}"))
            self.pool(pool)
            volumes[volume] = rule.new(domain.name, volume, pool)
        domain.load_state({}, {f"created-by-{creator}"}, volumes)
        self.domains.require_free(domain.name, uuid, domain.qid)
        self.record(DomainAdded(domain.name, cls.class_name))
        self.domains.insert(domain)
        before = len(self.changes)
        for key, stored in (properties or {}).items():
            domain.set(key, stored)
        del self.changes[before:]
        self.next_qid += 1
        return domain

    def remove(self, name: str) -> None:
        """Take a qube out of the system; the transaction is vetoed where something still refers to it."""
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
        """Take a label away; built-in ones stay, used ones veto the transaction."""
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
        """Take a pool away; the transaction is vetoed where volumes lie in it."""
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


ADMIN_VALUES: Mapping[str, Stored] = MappingProxyType({"name": ADMIN, "qid": 0, "uuid": NIL})
"""The identity of the admin qube, the same in every system."""
