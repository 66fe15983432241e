"""Tags: names put on a qube, mostly for policy rules."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from casemate.model.changes import TagAdded, TagRemoved
from casemate.wire import names
from casemate.wire.errors import TagNotFoundError, ValueInvalidError, printable

if TYPE_CHECKING:
    from casemate.model.domain import Domain

MAX_TAGS = 64
"""Limit of the store: tags of a qube."""


class Tags(Collection[str]):
    """The tags of one qube; a view that also changes them."""

    __slots__ = ("_domain",)

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    @property
    def _values(self) -> set[str]:
        return self._domain.state.tags

    def __contains__(self, tag: object) -> bool:
        return tag in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def add(self, tag: str) -> None:
        """Put a tag on the qube; one that is there already stays."""
        tag = str(names.tag_name(tag))
        if tag in self._values:
            return
        if len(self._values) >= MAX_TAGS:
            raise ValueInvalidError(f"{self._domain.name}: a qube has at most {MAX_TAGS} tags")
        self._domain.record(TagAdded(self._domain.name, tag))
        self._values.add(tag)

    def remove(self, tag: str) -> None:
        """Take a tag off the qube; raises TagNotFoundError."""
        if tag not in self._values:
            raise TagNotFoundError(f"{self._domain.name}: no tag {printable(tag, 80)!r}")
        self._domain.record(TagRemoved(self._domain.name, tag))
        self._values.discard(tag)
