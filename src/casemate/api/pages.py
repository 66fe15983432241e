"""How the generated pages of docs/reference are written: head, tables, cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

NOTE = "<!-- Written by `make docs` from the code: do not edit. -->"


def page(title: str, *parts: str) -> str:
    """A page of Markdown."""
    return "\n\n".join((NOTE, f"# {title}", *(part.strip("\n") for part in parts))) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; ``|`` is escaped in cells."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "–"


def code(text: str) -> str:
    """Text as written, within a line."""
    return f"`{text}`" if text else ""


def write(directory: Path, pages: dict[str, str]) -> None:
    """Write the pages that changed, and print which."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in sorted(pages.items()):
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path} is written")  # noqa: T201
