"""The committed pages of docs/reference are what `make docs` writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from casemate.api import reference
from casemate.api.event_table import documented
from casemate.api.limits import LIMITS
from casemate.api.method import INTERNAL, METHODS, MISC
from casemate.cli import reference as tools
from casemate.model.classes import CLASSES
from casemate.wire.errors import CasemateError

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "reference"


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_page_is_fresh(name: str) -> None:
    assert (PAGES / name).read_text() == reference.PAGES[name](), f"{name} is stale: run `make docs`"


def test_page_of_tools_is_fresh() -> None:
    assert (PAGES / "tools.md").read_text() == tools.page(), "tools.md is stale: run `make docs`"


def test_every_tool_has_a_program_and_a_section() -> None:
    programs = {path.name for path in (ROOT / "bin").iterdir()} - {"casemate", "casemated", "casemate-qrexecd"}
    assert programs <= set(tools.names())
    sections = set(re.findall(r"^### (\S+)$", tools.page(), re.M))
    assert sections == {"casemate", *tools.names()}


def test_every_method_is_on_the_page() -> None:
    shown = re.findall(r"^\| `(\S+)` \|", reference.methods(), re.M)
    assert {name for pattern in shown for name in expand(pattern)} == METHODS.keys() | INTERNAL.keys() | MISC.keys()


def test_every_event_that_is_said_anywhere_is_on_the_page() -> None:
    """Names of events in the code, f-strings with a star for what is put in."""
    said = {}
    for path in (ROOT / "src/casemate").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called not in ("say", "publish", "Event", "_say"):
                continue
            for argument in node.args[:2]:
                text = _text(argument)
                if re.fullmatch(r"[a-z]+(-[a-z*]+)+(:\*)?", text):
                    said[text] = path.name
    assert len(said) > 30
    for name, where in said.items():
        words = [name.replace("*", word, 1) for word in ("begin", "end")] if "*-" in name or "-*" in name else [name]
        assert all(documented(word) for word in words), f"{where} says {name}, which is not in the table"


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "*" for v in node.values)
    return ""


def expand(pattern: str) -> list[str]:
    """The names that ``a.{b,c}`` stands for."""
    before, found, rest = pattern.partition("{")
    if not found:
        return [pattern]
    choices, _, after = rest.partition("}")
    return [before + choice + tail for choice in choices.split(",") for tail in expand(after)]


def test_every_property_of_every_class_is_on_the_page() -> None:
    page = reference.properties()
    for cls in CLASSES.values():
        for name, prop in cls.properties().items():
            assert f"| `{name}` |" in page
            assert prop.doc.strip(), name


def test_every_error_has_a_meaning() -> None:
    for line in reference.errors().splitlines():
        if line.startswith("| `"):
            meaning = line.strip("| ").rpartition("|")[2].strip()
            assert len(meaning) > 5, line
    assert "CasemateError" in reference.errors() and CasemateError.wire_name in reference.errors()


def test_every_limit_is_positive() -> None:
    for section in LIMITS.values():
        for limit in section:
            assert limit.value() > 0, limit.what


def test_relative_links_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"
