"""Where a property's value comes from while nobody set it; every default can say so in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from casemate.model.kinds import Stored

if TYPE_CHECKING:
    from casemate.model.properties import Holder


class Default:
    """A rule that gives the stored value of a property nobody set."""

    def value(self, holder: Holder, name: str) -> Stored:
        """The default of property ``name`` on ``holder``."""
        raise NotImplementedError

    def describe(self) -> str:
        """The rule in words."""
        raise NotImplementedError


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


class FromSystem(Default):
    """The value of a global property."""

    def __init__(self, name: str) -> None:
        self.name = name

    def value(self, holder: Holder, name: str) -> Stored:
        return holder.system.stored(self.name)

    def describe(self) -> str:
        return f"the global {self.name}"


class Computed(Default):
    """What a function of the holder says."""

    def __init__(self, function: Callable[[Any], Stored], doc: str) -> None:
        self.function = function
        self.doc = doc

    def value(self, holder: Holder, name: str) -> Stored:
        return self.function(holder)

    def describe(self) -> str:
        return self.doc
