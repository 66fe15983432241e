"""What an event of the Admin API is: the base of the classes in ``events.py``, and the list of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from typing import ClassVar, dataclass_transform

from casemate.wire.admin import Event

EVENTS: list[type[ApiEvent]] = []
"""Every event, in the order of the reference page."""


@dataclass_transform(frozen_default=True)
class ApiEvent:
    """Base of all events. A subclass names its events; one without names only groups others.

    ``names`` are sent one after the other, each with all details; a ``*`` in them stands for the value of the field
    ``star``. A field is a detail under its own name, unless it is in ``unsaid``; one that is None is left out.
    """

    group: ClassVar[str] = ""
    """Section of the reference page."""
    about: ClassVar[str] = "qube"
    """Whom the event is about: ``qube``, ``system`` (empty subject), or both."""
    names: ClassVar[tuple[str, ...]] = ()
    star: ClassVar[str] = ""
    unsaid: ClassVar[frozenset[str]] = frozenset()
    subject: str

    def __init_subclass__(cls, *, names: str = "", star: str = "") -> None:
        super().__init_subclass__()
        dataclass(frozen=True)(cls)
        cls.names = tuple(names.split())
        cls.star = star or cls.star
        if names:
            EVENTS.append(cls)

    @classmethod
    def details(cls) -> tuple[str, ...]:
        """The keys of the details, in the order in which they are sent; one that may be absent is in brackets."""
        return tuple(f"[{field.name}]" if field.default is None else field.name for field in cls._said())

    @classmethod
    def _said(cls) -> list[Field[object]]:
        found = fields(cls)  # type: ignore[arg-type]  # each subclass is made a dataclass above
        return [field for field in found if field.name != "subject" and field.name not in cls.unsaid]

    def frames(self) -> Iterator[Event]:
        """The frames that subscribers get, in order."""
        details = {
            field.name: str(getattr(self, field.name))
            for field in self._said()
            if getattr(self, field.name) is not None
        }
        for name in self.names:
            yield Event(self.subject, name.replace("*", str(getattr(self, self.star))) if self.star else name, details)


class QubeEvent(ApiEvent):
    """About one qube; ``subject`` is its name."""

    subject: str


class SystemEvent(ApiEvent):
    """About the system as a whole."""

    about = "system"
    subject: ClassVar[str] = ""  # type: ignore[misc]  # the same for all, so no argument
