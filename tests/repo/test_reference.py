"""The committed pages of docs/reference are what `make docs` writes."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from casemate.api import reference
from casemate.api.limits import limits
from casemate.api.methods import INTERNAL, METHODS, MISC
from casemate.cli import complete, completion, declarations
from casemate.cli import reference as tools
from casemate.library import reference as library
from casemate.model.classes import CLASSES
from casemate.wire.admin import CONNECTED
from casemate.wire.api_event import EVENTS
from casemate.wire.errors import CasemateError

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "reference"


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_page_is_fresh(name: str) -> None:
    assert (PAGES / name).read_text() == reference.PAGES[name](), f"{name} is stale: run `make docs`"


@pytest.mark.parametrize("name", sorted(tools.PAGES))
def test_page_of_tools_is_fresh(name: str) -> None:
    assert (PAGES / name).read_text() == tools.PAGES[name](), f"{name} is stale: run `make docs`"


def test_table_of_completion_is_fresh() -> None:
    assert Path(complete.TABLE).read_text() == completion.table(), "completion.tsv is stale: run `make docs`"


def test_page_of_the_library_is_fresh() -> None:
    assert (PAGES / "library.md").read_text() == library.page(), "library.md is stale: run `make docs`"


def test_every_tool_has_a_program_and_a_section() -> None:
    own = {"casemate", "casemated", "casemate-qrexecd", "casemate-web"}
    programs = {path.name for path in (ROOT / "bin").iterdir()} - own
    assert programs <= set(declarations.names())
    sections = set(re.findall(r"^### (\S+)$", tools.page(), re.M))
    assert sections == {"casemate", *declarations.names()}


def test_every_method_is_on_the_page() -> None:
    shown = re.findall(r"^\| `(\S+)` \|", reference.methods(), re.M)
    assert {name for pattern in shown for name in expand(pattern)} == METHODS.keys() | INTERNAL.keys() | MISC.keys()


def test_every_event_is_announced_by_its_class_alone() -> None:
    """Each class of events is made somewhere, and nobody writes the name of an event as text."""
    made: set[str] = set()
    words = {name.removesuffix(":*") for event in EVENTS for name in event.names} - {CONNECTED}
    for path in (ROOT / "src/casemate").rglob("*.py"):
        source = path.read_text()
        if path.parts[-2:] == ("wire", "events.py"):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ev":
                made.add(node.attr)
            if isinstance(node, ast.Name) and "from casemate.wire.events import" in source:
                made.add(node.id)
            readers = "/cli/" in str(path) or "/web/" in str(path)  # they compare names that they have read
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not readers:
                assert node.value.partition(":")[0] not in words, f"{path.name}:{node.lineno} says {node.value!r}"
    assert {event.__name__ for event in EVENTS} - made == set()


def test_the_frames_of_an_event_are_what_its_class_says() -> None:
    for event in EVENTS:
        values = {field.name: f"<{field.name}>" for field in fields(event)}  # type: ignore[arg-type]
        frames = list(event(**values).frames())
        assert [frame.name for frame in frames] == [
            name.replace("*", f"<{event.star}>") if event.star else name for name in event.names
        ]
        for frame in frames:
            assert tuple(frame.details) == tuple(key.strip("[]") for key in event.details())
            assert frame.subject == ("" if event.about == "system" else "<subject>")


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


def test_every_limit_is_found_and_positive() -> None:
    found = [limit for rows in limits().values() for limit in rows]
    for limit in found:
        assert limit.value() > 0, limit.what
    sources = [path for path in (ROOT / "src/casemate").rglob("*.py") if path.name != "limits.py"]
    written = sum(path.read_text().count('"""Limit of ') for path in sources)
    assert written == len(found) > 60, "some limit is declared in a form that is not understood"


def test_relative_links_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"
