"""Rules for the value of a property that nobody has set. Each can describe itself, for the reference page."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from casemate.model.kinds import Registry, Stored


class Holder(Protocol):
    """What a rule asks of the holder of a property (`properties.Holder` is the class)."""

    @property
    def system(self) -> Registry:
        """The system it belongs to."""

    def title(self) -> str:
        """What to call it in a message."""

    def base(self) -> Holder | None:
        """The template whose values are defaults here."""

    def has(self, name: str) -> bool:
        """Whether it has such a property."""

    def stored(self, name: str) -> Stored:
        """The effective stored value of a property."""


class Default:
    """A rule that gives the stored value of a property nobody set."""

    def value(self, holder: Holder, name: str) -> Stored:
        """The default of property ``name`` on ``holder``."""
        raise NotImplementedError

    def describe(self) -> str:
        """The rule in words."""
        raise NotImplementedError

    def origin(self, holder: Holder, name: str) -> str:
        """Where the default of property ``name`` on ``holder`` comes from now, in words; empty for a constant."""
        return ""


class Fixed(Default):
    """Always the same value."""

    def __init__(self, constant: Stored) -> None:
        self.constant = constant

    def value(self, holder: Holder, name: str) -> Stored:
        return self.constant

    def describe(self) -> str:
        return "none" if self.constant in (None, "") else str(self.constant)


class FromTemplate(Default):
    """The value of the qube's template, where it has one; else another default."""

    def __init__(self, fallback: Default | Stored) -> None:
        self.fallback = fallback if isinstance(fallback, Default) else Fixed(fallback)

    def value(self, holder: Holder, name: str) -> Stored:
        template = holder.base()
        if template is not None and template.has(name):
            return template.stored(name)
        return self.fallback.value(holder, name)

    def describe(self) -> str:
        return f"that of the template, else {self.fallback.describe()}"

    def origin(self, holder: Holder, name: str) -> str:
        template = holder.base()
        if template is not None and template.has(name):
            return f"the template {template.title()}"
        return self.fallback.origin(holder, name)


class FromSystem(Default):
    """The value of a global property."""

    def __init__(self, name: str) -> None:
        self.name = name

    def value(self, holder: Holder, name: str) -> Stored:
        return holder.system.stored(self.name)

    def describe(self) -> str:
        return f"the global {self.name}"

    def origin(self, holder: Holder, name: str) -> str:
        return self.describe()


class Computed(Default):
    """What a function of the holder says."""

    def __init__(self, function: Callable[[Any], Stored], doc: str) -> None:
        self.function = function
        self.doc = doc

    def value(self, holder: Holder, name: str) -> Stored:
        return self.function(holder)

    def describe(self) -> str:
        return self.doc


class Source(Enum):
    """Who gives a live value."""

    MACHINE = "the running machine"
    HOST = "the host"


class Live(Default):
    """What somebody outside the model knows, now: the attribute of the source that has the property's name.

    The model itself knows only what holds while the source has no answer. ``api/live.py`` asks the sources.
    """

    def __init__(self, source: Source, otherwise: Stored) -> None:
        self.source = source
        self.otherwise = otherwise

    def value(self, holder: Holder, name: str) -> Stored:
        return self.otherwise

    def describe(self) -> str:
        if self.source is Source.HOST:
            return "as the host is"
        return f"that of {self.source.value}; {'none' if self.otherwise is None else self.otherwise} while halted"


class Never(Fixed):
    """A property of Qubes OS that cannot have another value here, and why not."""

    def __init__(self, constant: Stored, why: str) -> None:
        super().__init__(constant)
        self.why = why

    def describe(self) -> str:
        return f"always {super().describe()}: {self.why}"
