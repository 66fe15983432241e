"""Guests that are kept, as methods of the Admin API list them: warm images and snapshots.

A line each: what it is called, then ``KEY=VALUE`` for each other field in their order here. None has a blank in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A warm image, as ``admin.casemate.warm.List`` has it. Times are seconds since the epoch."""

    key: str
    template: str
    made: int
    used: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A running qube as it was, kept under a name, as ``admin.casemate.snapshot.List`` has it."""

    name: str
    qube: str
    """The name of the qube that it was taken of, which may be gone."""
    base: str
    """The name of the disposable template that what goes on from it is based on."""
    made: int
    """When, in seconds since the epoch."""
    bytes: int
    """Its size on disk, without what its disks had written."""


Listed = TypeVar("Listed", ListedImage, Snapshot)


def build_lines(listed: Iterable[ListedImage] | Iterable[Snapshot]) -> str:
    """The content of a reply."""
    return "".join(f"{_line(one)}\n" for one in listed)


def _line(one: ListedImage | Snapshot) -> str:
    first, *others = fields(one)
    return " ".join((str(getattr(one, first.name)), *(f"{of.name}={getattr(one, of.name)}" for of in others)))


def parse_lines(kind: type[Listed], content: str) -> list[Listed]:
    """What a reply lists. Words that this version does not know are passed over."""
    first = fields(kind)[0].name
    found = []
    for line in content.splitlines():
        name, *words = line.split(" ")
        said = {first: name} | dict(word.split("=", 1) for word in words)
        values: list[Any] = [int(said[of.name]) if of.type == "int" else said[of.name] for of in fields(kind)]
        found.append(kind(*values))
    return found
