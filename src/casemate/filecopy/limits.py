"""How much one copy may bring: without a limit, or as the owner of the receiving qube has set it."""

from __future__ import annotations

from casemate.wire.names import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = {
    "max-bytes": "bytes of data",
    "max-files": "files, directories and links",
    "max-depth": "directories deep",
}
"""The limits that can be set, and what each counts. ``/vm-config/filecopy-NAME`` is the key of a qube's database, which
the feature ``vm-config.filecopy-NAME`` sets; ``--NAME=N`` is the option of qfile-unpacker."""
KEY = "filecopy-"


class Limits:
    """The limits of one copy by their names in NAMES; one that is not there is none. ``where`` is what a refusal calls
    a limit that was not set by its key."""

    __slots__ = ("_set", "_where")

    def __init__(self, limits: dict[str, int] | None = None, where: dict[str, str] | None = None) -> None:
        self._set = dict(limits or {})
        self._where = where or {}

    @classmethod
    def read(cls, value_of: Callable[[str], str | None]) -> Limits:
        """From texts: ``value_of("filecopy-max-bytes")`` and so on. ValueInvalidError for one that is no number: a
        limit that cannot be understood must not become none."""
        found = ((name, value_of(KEY + name)) for name in NAMES)
        return cls({name: number(text, KEY + name) for name, text in found if text})

    def set(self, name: str, value: int) -> None:
        """Set one, in place of what it was."""
        self._set[name] = value

    def exceeded(self, name: str, value: int) -> str:
        """What to say where ``value`` is beyond a limit, which is named; empty where it is not."""
        most = self._set.get(name)
        if most is None or value <= most:
            return ""
        return f"more than {most} {NAMES[name]} ({self._where.get(name, KEY + name)})"
