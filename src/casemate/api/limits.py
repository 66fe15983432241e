"""Finds the constants that bound what anybody may ask for; the reference page of limits is written from them.

A limit is declared where it is enforced, by the docstring of its constant::

    MAX_STREAMS = 128
    \"""Limit of a qube's channel (streams): streams that one end may have open at once.\"""

The words before the colon name the section of the page and the unit (none for a plain number); the sentence after it is
the row.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The package whose modules are searched."""

_LIMIT = re.compile(r"Limit of (?P<topic>[^:(]+?)(?: \((?P<unit>[^)]+)\))?: (?P<what>.+?)\.(?: |$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Limit:
    """A number: what it bounds, where it is declared (module below ``casemate``, name in it), in which unit."""

    topic: str
    what: str
    module: str
    constant: str
    unit: str

    def value(self) -> float:
        """The number as it is in the code now. The grammar of a name counts as its greatest length."""
        found = attrgetter(self.constant)(import_module(f"casemate.{self.module}"))
        return float(getattr(found, "high", found))

    def text(self) -> str:
        """The number as a person writes it."""
        value = self.value()
        if self.unit == "bytes":
            for power, word in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
                if value >= 1 << power and value % (1 << power) == 0:
                    return f"{value / (1 << power):g} {word}"
        if self.unit == "seconds" and value >= 3600:
            return f"{value / 3600:g} hours"
        return f"{int(value) if value == int(value) else value} {self.unit}".strip()


def limits() -> dict[str, list[Limit]]:
    """Every declared limit by its topic, in order of modules."""
    found: dict[str, list[Limit]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text()
        if '"""Limit of ' in source:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for limit in _declared(module, ast.parse(source).body):
                found.setdefault(limit.topic, []).append(limit)
    return dict(sorted(found.items(), key=lambda item: item[0].removeprefix("the ").lower()))


def _declared(module: str, body: Sequence[ast.stmt], prefix: str = "") -> Iterator[Limit]:
    """The limits among the constants of a module or, as ``CLASS.NAME``, of a class."""
    for statement, following in zip(body, body[1:], strict=False):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))) if found := _LIMIT.match(text):
                    what = " ".join(found["what"].split())
                    name = prefix + statement.targets[0].id
                    yield Limit(found["topic"], what, module, name, found["unit"] or "")
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _declared(module, statement.body, f"{statement.name}.")
