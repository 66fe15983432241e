"""Views of the table of qubes that a person has saved: a filter under a name, kept for later runs of the page.

The browser cannot keep them: each run of the page has another port, and so is another site to it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from casemate.wire.errors import CasemateError, NotFoundError, ValueInvalidError

MAX_VIEWS = 30
"""Limit of the manager page (views): saved views of the table."""
MAX_FILTER = 200
"""Limit of the manager page (characters): filter of a saved view."""
_MAX_NAME = 40
_MAX_FILE = 64 << 10
"""Bytes: many times what MAX_VIEWS can take. A longer file is not one of ours."""
_CHOICES = {"which": ("all", "running"), "order": ("tree", "flat")}


@dataclass(frozen=True, slots=True)
class SavedView:
    """What is shown of the table."""

    name: str
    filter: str
    which: str
    order: str


def view_of(fields: Mapping[str, object]) -> SavedView:
    """A view of its fields; ValueInvalidError names what is wrong."""
    name, text = str(fields.get("name", "")).strip(), str(fields.get("filter", "")).strip()
    if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
        raise ValueInvalidError(f"The name of a view has 1 to {_MAX_NAME} printable characters")
    if len(text) > MAX_FILTER or not text.isprintable():
        raise ValueInvalidError(f"The filter of a view has at most {MAX_FILTER} printable characters")
    for key, choices in _CHOICES.items():
        if fields.get(key) not in choices:
            raise ValueInvalidError(f"{key} of a view is one of {', '.join(choices)}")
    return SavedView(name, text, str(fields["which"]), str(fields["order"]))


class SavedViews:
    """The views of one user, in one file of his. Read at each use: two pages may run beside each other."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path if path is not None else _default_path()

    def all(self) -> list[SavedView]:
        """Those that there are, by name. What in the file is no view is left out."""
        try:
            with open(self._path, encoding="utf-8") as file:
                entries = json.loads(file.read(_MAX_FILE))
        except (OSError, ValueError, RecursionError):
            return []
        found: dict[str, SavedView] = {}
        for entry in entries if isinstance(entries, list) else []:
            try:
                view = view_of(entry)
            except (CasemateError, AttributeError):
                continue
            found[view.name] = view
        return sorted(found.values(), key=lambda view: view.name)[:MAX_VIEWS]

    def save(self, view: SavedView) -> None:
        """Keep a view, in place of one of the same name."""
        views = [one for one in self.all() if one.name != view.name]
        if len(views) >= MAX_VIEWS:
            raise ValueInvalidError(f"There may be {MAX_VIEWS} views; remove one")
        self._write([*views, view])

    def remove(self, name: str) -> None:
        """Forget a view; NotFoundError where there is none of that name."""
        views = self.all()
        left = [view for view in views if view.name != name]
        if len(left) == len(views):
            raise NotFoundError(message="There is no such view")
        self._write(left)

    def _write(self, views: list[SavedView]) -> None:
        """Replace the file as a whole: whoever reads meanwhile gets the old one or the new one."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".views-")
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump([asdict(view) for view in views], file, indent=1)
                Path(name).replace(self._path)
            except BaseException:
                Path(name).unlink()
                raise
        except OSError as error:
            raise CasemateError(f"Views cannot be saved in {self._path}: {error.strerror}") from error


def _default_path() -> Path:
    """Where a user's programs keep such things (XDG base directory specification)."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "casemate" / "manager-views.json"
