"""Kinds of values: how a property's text is checked and read, how its value is written, what the wire calls it.

::

    text  ── parse ──>  stored  ── resolve(system) ──>  value that code reads
          <─ format ──          <───── store ─────────

A holder keeps the *stored* form of a value, which is plain and immutable; a reference is stored as a name. So a system
is copied without following references, and a file may name a qube before it defines it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from casemate.model.labels import Label
from casemate.wire import names
from casemate.wire.errors import LabelNotFoundError, NotFoundError, PropertyValueError, ValueInvalidError, printable

T = TypeVar("T")


class Named(Protocol):
    """Something that is kept by its name."""

    @property
    def name(self) -> str: ...


D = TypeVar("D", bound=Named)

Stored = int | bool | str | uuid.UUID | None
"""What a holder keeps for one property."""


class Lookup(Protocol):
    """Qubes by their names."""

    def __contains__(self, name: object) -> bool: ...
    def __getitem__(self, name: str) -> Any: ...


class Registry(Protocol):
    """The system, as properties see it: what references point to, and the global properties that are defaults."""

    @property
    def domains(self) -> Lookup:
        """All qubes by name."""

    @property
    def labels(self) -> Mapping[str, Label]:
        """All labels by name."""

    def stored(self, name: str) -> Stored:
        """The effective stored value of a global property."""


class Kind(Generic[T]):
    """One kind of value. Text from outside becomes a stored value here, or raises ValueInvalidError."""

    tag: ClassVar[str] = "str"
    """The word for this kind on the wire: ``str``, ``int``, ``bool``, ``vm`` or ``label``."""

    optional: bool = False
    """Whether empty text is a value (none)."""

    def syntax(self) -> str:
        """What a person may write, in words for the reference page and for help."""
        raise NotImplementedError

    def bounds(self) -> Mapping[str, object]:
        """The same for a program that makes a form: ``choices``; ``low``, ``high`` and ``unit``; ``limit``."""
        return {}

    def read(self, text: str) -> Stored:
        """The stored value of non-empty or required ``text``; raises ValueInvalidError."""
        raise NotImplementedError

    def parse(self, text: str) -> Stored:
        """The stored value that ``text`` means. Whether a reference exists is not looked at (``require``)."""
        if not text and self.optional:
            return None
        return self.read(text)

    def require(self, stored: Stored, system: Registry) -> None:
        """Raise where ``stored`` refers to something that ``system`` does not have."""

    def format(self, stored: Stored) -> str:
        """The text of a stored value; empty for none."""
        return "" if stored is None else str(stored)

    def resolve(self, stored: Stored, system: Registry) -> T:
        """The value that code reads."""
        return cast(T, stored)

    def store(self, value: T) -> Stored:
        """The stored form of a value that code sets; as strict as ``parse``."""
        return self.parse(self.format(cast(Stored, value)))


class _Int(Kind[T]):
    tag = "int"

    def __init__(self, low: int = 0, high: int = 2**63 - 1, unit: str = "") -> None:
        self.low, self.high, self.unit = low, high, unit

    def syntax(self) -> str:
        upper = f" to {self.high}" if self.high < 2**63 - 1 else " or more"
        return f"a whole number, {self.low}{upper}{' ' + self.unit if self.unit else ''}"

    def bounds(self) -> Mapping[str, object]:
        return {"low": self.low, "high": self.high, "unit": self.unit}

    def read(self, text: str) -> Stored:
        if text.startswith("-") and self.low < 0:
            value = -names.number(text[1:], "number", 1)
            if value < self.low:
                raise ValueInvalidError(f"number must be {self.low} or more, not {value}")
            return value
        return names.number(text, "number", max(self.low, 0), self.high)


class Int(_Int[int]):
    """A whole number within bounds."""


class OptionalInt(_Int[int | None]):
    """A whole number within bounds, or nothing."""

    optional = True


class Bool(Kind[bool]):
    """Yes or no. Besides ``True`` and ``False`` the words that upstream's tools send are understood."""

    tag = "bool"
    _TRUE = frozenset({"1", "yes", "true", "on"})
    _FALSE = frozenset({"0", "no", "false", "off"})

    def syntax(self) -> str:
        return "True or False (also yes/no, on/off, 1/0)"

    def bounds(self) -> Mapping[str, object]:
        return {"choices": ["True", "False"]}

    def read(self, text: str) -> Stored:
        word = text.lower()
        if word in self._TRUE:
            return True
        if word in self._FALSE:
            return False
        raise ValueInvalidError(f"Not a boolean: {printable(text, 40)!r}")


class _Text(Kind[T]):
    def __init__(
        self, pattern: str | None = None, *, limit: int = 1024, what: str = "text", empty: bool = True
    ) -> None:
        self.pattern = None if pattern is None else re.compile(pattern, re.ASCII)
        self.limit, self.what, self.empty = limit, what, empty

    def syntax(self) -> str:
        return f"{self.what}, at most {self.limit} characters"

    def bounds(self) -> Mapping[str, object]:
        return {"limit": self.limit}

    def read(self, text: str) -> Stored:
        if len(text) > self.limit:
            raise ValueInvalidError(f"{self.what} is longer than {self.limit} characters")
        if not text:
            if self.empty:
                return text
            raise ValueInvalidError(f"{self.what} must not be empty")
        if any(not " " <= c <= "~" for c in text):
            raise ValueInvalidError(f"{self.what} has characters that are not printable ASCII")
        if self.pattern is not None and self.pattern.fullmatch(text) is None:
            raise ValueInvalidError(f"Invalid {self.what}: {printable(text, 80)!r}")
        return text


class Text(_Text[str]):
    """Printable ASCII of bounded length, possibly of a given form."""


class OptionalText(_Text[str | None]):
    """Printable ASCII of bounded length, or nothing."""

    optional = True


class Name(Kind[str]):
    """The name of a qube itself."""

    def syntax(self) -> str:
        return "a letter, then letters, digits, '_' and '-', at most 31 characters"

    def read(self, text: str) -> Stored:
        return str(names.qube_name(text))


class Identity(Kind[uuid.UUID]):
    """A UUID."""

    def syntax(self) -> str:
        return "a UUID in its 36-character form"

    def read(self, text: str) -> Stored:
        return uuid.UUID(names.uuid_text(text))


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def syntax(self) -> str:
        return "one of " + ", ".join(self.choices)

    def bounds(self) -> Mapping[str, object]:
        return {"choices": list(self.choices)}

    def read(self, text: str) -> Stored:
        if text not in self.choices:
            raise ValueInvalidError(f"{printable(text, 40)!r} is not one of {', '.join(self.choices)}")
        return text


class DomainRef(Kind[D | None], Generic[D]):
    """Another qube, by its name; with ``optional`` also none. ``D`` is the class of what is read, `Domain`."""

    tag = "vm"

    def __init__(self, *, optional: bool = False) -> None:
        self.optional = optional

    def syntax(self) -> str:
        return "the name of a qube" + (", or nothing for none" if self.optional else "")

    def read(self, text: str) -> Stored:
        return str(names.qube_name(text))

    def require(self, stored: Stored, system: Registry) -> None:
        if stored is not None and stored not in system.domains:
            raise NotFoundError(str(stored))

    def resolve(self, stored: Stored, system: Registry) -> D | None:
        return None if stored is None else cast(D, system.domains[str(stored)])

    def store(self, value: D | None) -> Stored:
        if value is None:
            if not self.optional:
                raise PropertyValueError("A qube is required here")
            return None
        return value.name


class LabelRef(Kind[Label]):
    """A label, by its name."""

    tag = "label"

    def syntax(self) -> str:
        return "the name of a label"

    def read(self, text: str) -> Stored:
        return str(names.label_name(text))

    def require(self, stored: Stored, system: Registry) -> None:
        if stored not in system.labels:
            raise LabelNotFoundError(f"No such label: {stored!r}; there are {', '.join(system.labels)}")

    def resolve(self, stored: Stored, system: Registry) -> Label:
        return system.labels[str(stored)]

    def store(self, value: Label) -> Stored:
        return value.name
