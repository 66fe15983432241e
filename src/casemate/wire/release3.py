"""Words of the store of Qubes OS 3, which a migrated ``qubes.xml`` and backups of versions 2 and 3 have.

Each qube is one element there, and everything about it an attribute. Source: the formats themselves; facts only.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import MappingProxyType

CLASS_OF: Mapping[str, str | None] = MappingProxyType(
    {
        "QubesAdminVm": None,
        "QubesTemplateVm": "TemplateVM",
        "QubesTemplateHVm": "TemplateVM",
        "QubesNetVm": "AppVM",
        "QubesProxyVm": "AppVM",
        "QubesAppVm": "AppVM",
        "QubesDisposableVm": "DispVM",
        "QubesHVm": "StandaloneVM",
    }
)
"""The class of today for each class of Qubes OS 3; None for the admin qube, which every system has."""

NET = ("QubesNetVm", "QubesProxyVm")
"""Classes of qubes that provide network. They never took the system's default network themselves."""
HVM = ("QubesHVm", "QubesTemplateHVm")
"""Classes of qubes that were fully virtualised."""
LABELS: Mapping[str, str] = MappingProxyType({str(index): name for index, name in enumerate(
    ("red", "orange", "yellow", "green", "gray", "blue", "purple", "black"), 1
)})  # fmt: skip
"""Early releases wrote a label's number."""
SAME = ("memory", "maxmem", "vcpus", "kernelopts", "default_user", "debug", "autostart", "include_in_backups")
"""Attributes that are properties of the same name today."""


def literal(text: str) -> object:
    """A value that was written as a Python literal. It is parsed, never executed. ValueError for anything else."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("it is no plain value") from error
