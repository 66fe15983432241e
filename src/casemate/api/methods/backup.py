"""Methods of backups. Backups do not exist here yet, so there are no profiles and none is running."""

from __future__ import annotations

from casemate.api.method import Access, method
from casemate.wire import names
from casemate.wire.errors import BackupProfileNotFoundError, NotImplementedHereError


@method("admin.backup.{verb}", Access.EXECUTE, verb=("Execute", "Info"))
async def backup(verb: str, arg: str) -> None:
    """Make the backup that a profile describes, or describe it: not supported here yet."""
    names.argument(arg)
    raise NotImplementedHereError("Backups are not supported here yet")


@method("admin.backup.Cancel", Access.EXECUTE)
async def cancel(arg: str) -> None:
    """Cancel a running backup: none can be running."""
    names.argument(arg)
    raise BackupProfileNotFoundError("No backup is running")
