"""Properties: a setting is declared once, as a class attribute; store, API, tools and manual read the declaration.

::

    class QubeSettings(Qube):
        memory = Property(Int(1, 1 << 24, "MiB"), role=Role.LOCAL, default=FromTemplate(400), doc="…")

    qube.memory                  the effective value: what was set, else the default
    qube.memory = 600            checked by the kind, recorded as a change, stored
    qube.set_text("memory", …)   the same from text of a person
    QubeSettings.memory          the declaration
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, Flag, auto
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar, overload

from casemate.model.changes import Change, PropertyReset, PropertySet
from casemate.model.defaults import Default, Fixed, Live
from casemate.model.kinds import Kind, Registry
from casemate.model.kinds import Stored as Stored
from casemate.wire.errors import NoSuchPropertyError, PropertyValueError, ValueInvalidError, printable

T = TypeVar("T")


class _Missing(Enum):
    MISSING = "missing"


MISSING = _Missing.MISSING
"""Marks that a property has no default, or no value on a class without it. None is a value that can be set."""


class Role(Flag):
    """What qubes of a class are able to. A property belongs to one role; a class has several, and their properties."""

    ANY = auto()
    MANAGED = auto()
    """Configured on this host: all qubes but placeholders of those on other machines."""
    LOCAL = auto()
    """Runs as a machine on this host."""
    TEMPLATE = auto()
    BASED = auto()
    """Based on a template."""
    DISPOSABLE_BASE = auto()
    """May be a template of disposables."""
    DISPOSABLE = auto()
    REMOTE = auto()


class Setting(Enum):
    """Who may set a property, and when."""

    FREE = "free"
    ONCE = "once"
    """At creation only."""
    READ_ONLY = "read-only"


class Property(Generic[T]):
    """One setting of a qube or of the system.

    ``kind`` is the kind of its values, ``default`` a rule or a constant, ``doc`` a sentence for the reference page.
    ``role`` says which classes have it. ``absent`` is what reading the attribute gives on a class without it, so that
    code need not ask for classes; where there is none, reading raises NoSuchPropertyError.

    ``kept`` is for a property of Qubes OS that is stored and told but does nothing here, and says what it waits for.
    ``while_halted``: a running machine is built on it, so it changes only while the qube is halted. ``tagged``: the
    qube also has the tag ``PROPERTY-VALUE``, so that rules of the policy can name the qubes with that value.
    """

    name: str

    def __init__(
        self,
        kind: Kind[T],
        *,
        doc: str,
        role: Role = Role.ANY,
        default: Default | Stored | _Missing = MISSING,
        setting: Setting = Setting.FREE,
        absent: T | _Missing = MISSING,
        kept: str = "",
        while_halted: bool = False,
        tagged: bool = False,
    ) -> None:
        self.kind = kind
        self.doc = doc
        self.role = role
        self.default: Default | None = (
            default if isinstance(default, Default) else None if isinstance(default, _Missing) else Fixed(default)
        )
        self.setting = setting
        self.absent = absent
        self.kept = kept
        self.while_halted = while_halted
        self.tagged = tagged

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, holder: None, owner: type) -> Property[T]: ...
    @overload
    def __get__(self, holder: Holder, owner: type) -> T: ...
    def __get__(self, holder: Holder | None, owner: type) -> Property[T] | T:
        if holder is None:
            return self
        if not isinstance(self.absent, _Missing) and not holder.has(self.name):
            return self.absent
        return self.kind.resolve(holder.stored(self.name), holder.system)

    def __set__(self, holder: Holder, value: T) -> None:
        try:
            stored = self.kind.store(value)
        except ValueInvalidError as error:
            raise PropertyValueError(f"{holder.title()}: {self.name}: {error}") from error
        holder.set(self.name, stored)


class Holder:
    """Something with properties: a qube, or the whole system."""

    roles: ClassVar[Role] = Role.ANY
    defaults: ClassVar[Mapping[str, Default]] = MappingProxyType({})
    """Defaults of this class that differ from the property's own."""
    _table: ClassVar[Mapping[str, Property[Any]]] = MappingProxyType({})
    _references: ClassVar[tuple[Property[Any], ...]] = ()
    _required: ClassVar[tuple[str, ...]] = ()
    _values: dict[str, Stored]

    def __init_subclass__(cls) -> None:
        found: dict[str, Property[Any]] = {}
        for base in reversed(cls.__mro__):
            found.update((name, p) for name, p in vars(base).items() if isinstance(p, Property))
        cls._table = MappingProxyType({name: found[name] for name in sorted(found) if found[name].role & cls.roles})
        cls._references = tuple(prop for prop in cls._table.values() if prop.kind.tag == "vm")
        cls._required = tuple(
            name for name, prop in cls._table.items() if prop.default is None and name not in cls.defaults
        )

    @property
    def system(self) -> Registry:
        """The system this belongs to."""
        raise NotImplementedError

    def title(self) -> str:
        """What to call this holder in a message."""
        raise NotImplementedError

    def subject(self) -> str | None:
        """Name of the qube in announcements; None for the system."""
        raise NotImplementedError

    def base(self) -> Holder | None:
        """The template whose values are defaults here."""
        return None

    def record(self, change: Change) -> None:
        """Note a change; raises RuntimeError where the system is a snapshot, which must not change."""
        raise NotImplementedError

    @classmethod
    def properties(cls) -> Mapping[str, Property[Any]]:
        """All properties of this class by name, in order of names."""
        return cls._table

    @classmethod
    def references(cls) -> tuple[Property[Any], ...]:
        """The properties of this class that refer to qubes."""
        return cls._references

    @classmethod
    def live(cls) -> Mapping[str, Live]:
        """The properties of this class whose values come from outside the model."""
        return {name: prop.default for name, prop in cls._table.items() if isinstance(prop.default, Live)}

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """Names of the properties of this class that have no default."""
        return cls._required

    @classmethod
    def has(cls, name: str) -> bool:
        """Whether this class has such a property."""
        return name in cls._table

    @classmethod
    def declaration(cls, name: str) -> Property[Any]:
        """The declaration of a property; raises NoSuchPropertyError."""
        try:
            return cls._table[name]
        except KeyError:
            raise NoSuchPropertyError(f"No such property: {printable(name, 80)!r}") from None

    def is_set(self, name: str) -> bool:
        """Whether the property has a value of its own."""
        self.declaration(name)
        return name in self._values

    def default_rule(self, name: str) -> Default | None:
        """The rule for the property's default; None if it has none."""
        return self.defaults.get(name) or self.declaration(name).default

    def default(self, name: str) -> Stored:
        """The stored value that the property has by default; raises NoSuchPropertyError if it has none."""
        rule = self.default_rule(name)
        if rule is None:
            raise NoSuchPropertyError(f"{self.title()}: property {name!r} has no default")
        return rule.value(self, name)

    def stored(self, name: str) -> Stored:
        """The effective stored value."""
        try:
            return self._values[name]
        except KeyError:
            return self.default(name)

    def text(self, name: str) -> str:
        """The effective value as text; empty for none."""
        return self.declaration(name).kind.format(self.stored(name))

    def default_text(self, name: str) -> str:
        """The default as text; empty for none."""
        return self.declaration(name).kind.format(self.default(name))

    def set_text(self, name: str, text: str) -> None:
        """Set a property from text of a person or another program."""
        prop = self.declaration(name)
        try:
            stored = prop.kind.parse(text)
        except ValueInvalidError as error:
            raise PropertyValueError(f"{self.title()}: {name}: {error}") from error
        self.set(name, stored)

    def set(self, name: str, stored: Stored) -> None:
        """Set a property to a stored value (already of the property's kind)."""
        prop = self.declaration(name)
        if prop.setting is Setting.READ_ONLY or (prop.setting is Setting.ONCE and name in self._values):
            raise PropertyValueError(f"{self.title()}: property {name!r} cannot be changed")
        prop.kind.require(stored, self.system)
        had_old, old = self.announced(name)
        self.record(PropertySet(self.subject(), name, _announced(prop, stored), old, had_old))
        self._values[name] = stored

    def reset(self, name: str) -> None:
        """Give a property its default again; one without a default is refused."""
        prop = self.declaration(name)
        if prop.setting is not Setting.FREE:
            raise PropertyValueError(f"{self.title()}: property {name!r} cannot be changed")
        if self.default_rule(name) is None:
            raise PropertyValueError(f"{self.title()}: property {name!r} has no default")
        had_old, old = self.announced(name)
        self.record(PropertyReset(self.subject(), name, old, had_old))
        self._values.pop(name, None)

    def announced(self, name: str) -> tuple[bool, str | None]:
        """Whether the property has a value, its default included, and the value as a change announces it."""
        if name not in self._values and self.default_rule(name) is None:
            return False, None
        return True, _announced(self.declaration(name), self.stored(name))

    def values(self) -> Mapping[str, Stored]:
        """The values that were set, as stored; read only."""
        return MappingProxyType(self._values)


def _announced(prop: Property[Any], stored: Stored) -> str | None:
    return None if stored is None else prop.kind.format(stored)
