"""HTML of values. Every text is escaped by Jinja2; text that comes from a qube is made printable and marked too."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from casemate.web.actions import verbs_for
from casemate.web.live import Row
from casemate.wire.admin import ADMIN
from casemate.wire.errors import printable

HERE = Path(__file__).parent


def said(text: str, who: str = "A qube") -> Markup:
    """Text that a qube, or somebody in it, may have chosen: marked, and without characters that turn or hide it.
    ``who`` is who chose it, as the mark tells a person."""
    return Markup('<span class="said" title="{} says this">{}</span>').format(who, printable(text, 2000))


def mib(size: str | int) -> str:
    """A size in bytes, for a person."""
    number = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit in ("bytes", "KiB") or number >= 100 else f"{number:.1f} {unit}"


_environment = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, auto_reload=False,
)  # fmt: skip
_environment.filters["said"] = said
_environment.filters["printable"] = lambda text: printable(str(text), 2000)
_environment.filters["size"] = mib


def render(template: str, **values: Any) -> str:
    """A template of ours with those values."""
    return _environment.get_template(template).render(**values)


@lru_cache(maxsize=4096)
def row(shown: Row, read_only: bool) -> str:
    """One row of the table of qubes. Kept: the same thousand rows are shown at each new page."""
    verbs = {} if read_only or shown.busy else verbs_for(shown.state, shown.name)
    return render("row.html", row=shown, verbs=verbs, read_only=read_only, host=shown.name == ADMIN)
