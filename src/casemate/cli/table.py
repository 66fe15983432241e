"""Tables of text: columns as wide as their widest cell, two spaces between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Paint = Callable[[int, str], str]
    """Gives a cell its colour, called with the number of its column and its padded text."""


def table(rows: Iterable[Sequence[str]], paint: Paint | None = None) -> str:
    """The rows as lines; the last column is not padded. ``paint`` colours the cells of all rows but the first.

    Before an empty last cell the blanks stay: scripts that cut columns by position count on the layout of column(1),
    which upstream's tools print with.
    """
    cells = [list(row) for row in rows]
    if not cells:
        return ""
    columns = list(zip(*cells, strict=True))
    for index, column in enumerate(columns[:-1]):
        width = max(map(len, column))
        columns[index] = tuple([text.ljust(width) for text in column])
    if paint is not None:  # only now: a colour has characters, but no width
        columns = [(head, *[paint(index, text) for text in rest]) for index, (head, *rest) in enumerate(columns)]
    return "".join([f"{'  '.join(row)}\n" for row in zip(*columns, strict=True)])


def raw(rows: Iterable[Sequence[str]]) -> str:
    """The rows as lines with ``|`` between cells, for programs."""
    return "".join("|".join(row) + "\n" for row in rows)
