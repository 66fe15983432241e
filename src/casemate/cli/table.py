"""Tables of text: columns as wide as their widest cell, two spaces between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[str]]) -> str:
    """The rows as lines; the last column is not padded."""
    cells = [list(row) for row in rows]
    if not cells:
        return ""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "".join(f"{line}\n" for line in lines)


def raw(rows: Iterable[Sequence[str]]) -> str:
    """The rows as lines with ``|`` between cells, for programs."""
    return "".join("|".join(row) + "\n" for row in rows)
