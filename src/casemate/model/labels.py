"""Labels: colours with names, by which a person sees how far a qube is trusted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """A colour with a name; ``index`` 1 to 8 are built in, others are the user's."""

    index: int
    name: str
    color: str

    @property
    def builtin(self) -> bool:
        """Whether the label exists in every system and cannot be removed."""
        return self.index <= LAST_BUILTIN

    @property
    def id(self) -> str:
        """The label's id in the store."""
        return f"label-{self.index}"

    def __str__(self) -> str:
        return self.name


BUILTIN = (
    Label(1, "red", "0xcc0000"),
    Label(2, "orange", "0xf57900"),
    Label(3, "yellow", "0xedd400"),
    Label(4, "green", "0x73d216"),
    Label(5, "gray", "0x555555"),
    Label(6, "blue", "0x3465a4"),
    Label(7, "purple", "0x75507b"),
    Label(8, "black", "0x000000"),
)
"""The labels that every system has, in the order of trust that people know."""

LAST_BUILTIN = 8
