"""What plugs in: its options, and how it is found (modules of a package of ours, then entry points of others')."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TypeVar

from casemate.wire.errors import printable

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """An option that a storage driver or a class of devices takes.

    ``check`` raises ValueInvalidError for a text that is no value. ``default`` is the text that counts when the option
    is not given. ``changeable``: it can be changed later (pools: ``admin.pool.Set.NAME``).
    """

    name: str
    doc: str
    check: Callable[[str], object]
    default: str = ""
    changeable: bool = False


def built_in(paths: Iterable[str], package: str, attribute: str, kind: type[T]) -> Iterator[T]:
    """The ``attribute`` of each module of a package that has one, in order of the modules' names.

    They are found by looking and not by entry points: a checkout that runs without being installed has no metadata.
    """
    for module in sorted(iter_modules(paths), key=lambda one: one.name):
        value = getattr(import_module(f"{package}.{module.name}"), attribute, None)
        if isinstance(value, kind):
            yield value


def installed(group: str, kind: type[T]) -> Iterator[T]:
    """What packages of others name as entry points of ``group``, in order of names.

    What is wrong with one of them is logged and it is left out: it must not keep the daemon from starting.
    """
    for point in sorted(entry_points(group=group), key=lambda one: one.name):
        try:
            value = point.load()
        except Exception as error:
            log.error("entry point %s of %s cannot be loaded: %s", point.name, group, printable(str(error), 300))
            continue
        if isinstance(value, kind):
            yield value
        else:
            log.error("entry point %s of %s is no %s", point.name, group, kind.__name__)
