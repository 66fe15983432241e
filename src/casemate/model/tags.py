"""Tags: words attached to a qube, mostly to be named in rules of the policy."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from casemate.model.changes import TagAdded, TagRemoved
from casemate.model.qube import Qube
from casemate.wire import names
from casemate.wire.errors import TagNotFoundError, ValueInvalidError, printable

MAX_TAGS = 64
"""Limit of the store: tags of a qube."""


class Tags(Collection[str]):
    """The tags of one qube: a view of its state, through which they are changed."""

    __slots__ = ("_qube",)

    def __init__(self, qube: Qube) -> None:
        self._qube = qube

    @property
    def _values(self) -> set[str]:
        return self._qube.state.tags

    def __contains__(self, tag: object) -> bool:
        return tag in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def add(self, tag: str) -> None:
        """Add a tag; nothing happens where the qube has it."""
        tag = str(names.tag_name(tag))
        if tag in self._values:
            return
        if len(self._values) >= MAX_TAGS:
            raise ValueInvalidError(f"{self._qube.name}: a qube has at most {MAX_TAGS} tags")
        self._qube.record(TagAdded(self._qube.name, tag))
        self._values.add(tag)

    def remove(self, tag: str) -> None:
        """Remove a tag; raises TagNotFoundError."""
        if tag not in self._values:
            raise TagNotFoundError(f"{self._qube.name}: no tag {printable(tag, 80)!r}")
        self._qube.record(TagRemoved(self._qube.name, tag))
        self._values.discard(tag)
