"""Every property that claims an effect has a reader: something besides its declaration that looks at its value."""

from __future__ import annotations

import ast
from pathlib import Path

from casemate.model.classes import CLASSES
from casemate.model.properties import Property, Setting
from casemate.model.system import System

SOURCE = Path(__file__).resolve().parents[2] / "src" / "casemate"
USERS_SIDE = {"cli", "client"}
"""Tools show and set any property: that is no effect."""


def read_names() -> set[str]:
    """Attributes that are read (not called), and texts that are an argument or an element of something."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in USERS_SIDE:
            continue
        tree = ast.parse(path.read_text())
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in called:
                found.add(node.attr)
            if isinstance(node, ast.Call | ast.Tuple | ast.Set):
                inner = node.args if isinstance(node, ast.Call) else node.elts
                found.update(e.value for e in inner if isinstance(e, ast.Constant) and isinstance(e.value, str))
    return found


def declared() -> dict[str, Property[object]]:
    found: dict[str, Property[object]] = {}
    for holder in (System, *CLASSES.values()):
        found.update(holder.properties())
    return found


def test_a_property_without_a_reader_says_what_it_waits_for() -> None:
    read = read_names()
    # The pools of new volumes are found by a name that is put together: default_pool_ and the name of the volume.
    built = {f"default_pool_{volume}" for volume in ("root", "private", "volatile")}
    # One that nobody can set informs; tests/component/test_property_values.py looks whether it has a value.
    settable = {n for n, prop in declared().items() if prop.setting is not Setting.READ_ONLY}
    silent = {n for n in settable if not declared()[n].kept and not declared()[n].tagged} - read - built
    assert silent == set(), "nobody reads them: give them an effect, or say with kept= why they have none"
    assert len([prop for prop in declared().values() if prop.kept]) < 30
