"""Methods of notes: free text about a qube, written and read by people."""

from __future__ import annotations

import asyncio
import unicodedata

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire.errors import NotesError, ValueInvalidError


def _sanitised(payload: bytes) -> str:
    """The text with control and format characters replaced, which could fool a terminal or a reader."""
    try:
        text = payload.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise NotesError("Notes must be UTF-8") from error
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "_" for c in text)


def _check(dest: Domain) -> None:
    if not dest.has("netvm") and dest.klass == "AdminVM":
        raise ValueInvalidError(f"{dest.name} has no notes")


@method("admin.vm.notes.Get", Access.READ)
def get_notes(context: Context, dest: Domain) -> str:
    """The notes about the qube."""
    _check(dest)
    return context.files.notes(dest.uuid)


@method("admin.vm.notes.Set", Access.EXECUTE)
async def set_notes(context: Context, dest: Domain, payload: bytes = b"") -> None:
    """Replace the notes about the qube; control characters become ``_``, empty text removes them."""
    _check(dest)
    await asyncio.to_thread(context.files.set_notes, dest.uuid, _sanitised(payload))
