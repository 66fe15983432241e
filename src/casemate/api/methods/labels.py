"""Methods of labels."""

from __future__ import annotations

from casemate.api.method import Access, method
from casemate.model.labels import Label
from casemate.model.system import System
from casemate.wire.errors import LabelNotFoundError, printable


def _find(system: System, name: str) -> Label:
    try:
        return system.labels[name]
    except KeyError:
        raise LabelNotFoundError(f"No such label: {printable(name, 80)!r}") from None


@method("admin.label.List", Access.READ)
def list_labels(system: System) -> str:
    """The names of the labels, in order of their numbers."""
    return "".join(f"{name}\n" for name in system.labels)


@method("admin.label.Get", Access.READ)
def get_color(system: System, arg: str) -> str:
    """The colour of a label, 0xRRGGBB."""
    return _find(system, arg).color


@method("admin.label.Index", Access.READ)
def get_index(system: System, arg: str) -> str:
    """The number of a label."""
    return str(_find(system, arg).index)


@method("admin.label.Create", Access.WRITE)
def create_label(system: System, arg: str, payload: str) -> None:
    """Add a label; the payload is its colour."""
    system.add_label(arg, payload)


@method("admin.label.Remove", Access.WRITE)
def remove_label(system: System, arg: str) -> None:
    """Remove a label that no qube has and that is not built in."""
    system.remove_label(arg)
