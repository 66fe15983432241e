"""Entries of a qube's menus, as ``qubes.GetAppmenus`` says them: ``FILE:KEY=VALUE`` lines; pure.

All of it is a qube's word. What is kept is enough to show an entry and to start it there by its id; the command that
the qube names is never kept. (bounds: docs/reference/limits.md)
"""

from __future__ import annotations

from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as Record
else:
    from casemate.wire.records import Record

MAX_TEXT = 1 << 20
"""Limit of what a qube says of itself (bytes): all entries of menus together."""
MAX_ENTRIES = 512
"""Limit of what a qube says of itself (entries): entries of menus."""
MAX_ENTRY = 16 << 10
"""Limit of what a qube says of itself (bytes): one entry of menus."""
MAX_SHOWN = 128
_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_SUFFIX = ".desktop"


class MenuEntry(Record):
    """One entry. ``ident`` is its file's name without the ending; texts are printable ASCII, or empty."""

    ident: str
    name: str
    comment: str
    icon: str
    categories: str


def parse_menus(untrusted_data: bytes) -> list[MenuEntry]:
    """The entries, sorted by id. What is wrong with one entry leaves out that entry, or that text of it.

    ProtocolError when it is more than any qube's menus could be.
    """
    if len(untrusted_data) > MAX_TEXT:
        raise ProtocolError(f"More than {MAX_TEXT} bytes of menus")
    found: dict[str, dict[str, str]] = {}
    sizes: dict[str, int] = {}
    for line in untrusted_data.split(b"\n"):
        path, colon, pair = line.partition(b":")
        key, equals, value = pair.partition(b"=")
        if not colon or not equals:
            continue
        ident = path.rpartition(b"/")[2].decode("ascii", "replace").removesuffix(_SUFFIX)
        if not ident or len(ident) > MAX_SHOWN or not set(ident) <= _ID or ident.startswith((".", "-")):
            continue
        if ident not in found and len(found) >= MAX_ENTRIES:
            raise ProtocolError(f"More than {MAX_ENTRIES} entries of menus")
        sizes[ident] = sizes.get(ident, 0) + len(line) + 1
        found.setdefault(ident, {}).setdefault(key.decode("ascii", "replace"), value.decode("utf-8", "replace"))
    return [
        MenuEntry(
            ident,
            _shown(texts.get("Name", "")) or ident,
            _shown(texts.get("Comment", "")),
            _word(texts.get("Icon", "")),
            _shown(texts.get("Categories", "")),
        )
        for ident, texts in sorted(found.items())
        if sizes[ident] <= MAX_ENTRY
    ]


def _shown(text: str) -> str:
    """Text that may be shown to a person, else nothing: never a part of it."""
    return text if len(text) <= MAX_SHOWN and text.isascii() and text.isprintable() else ""


def _word(text: str) -> str:
    return text if 1 <= len(text) <= 64 and set(text) <= _ID else ""


def build_lines(entries: list[MenuEntry]) -> str:
    """Entries as the host keeps and tells them: a line each, fields between tabs, in the order of MenuEntry."""
    return "".join("\t".join(entry) + "\n" for entry in entries)


def parse_lines(text: str) -> list[MenuEntry]:
    """What ``build_lines`` made."""
    return [MenuEntry(*line.split("\t")) for line in text.splitlines() if line.count("\t") == 4]
