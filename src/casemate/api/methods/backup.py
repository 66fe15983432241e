"""Methods of backups: each names a profile, which says what is backed up and where to (docs/howto/backup.md)."""

from __future__ import annotations

from casemate.api.context import Context
from casemate.api.method import Access, method


@method("admin.backup.Execute", Access.EXECUTE)
async def execute(context: Context, arg: str) -> None:
    """Make the backup that a profile describes; returns when it is complete. The event is ``backup-progress``."""
    await context.backups.execute(arg)


@method("admin.backup.Info", Access.EXECUTE)
async def info(context: Context, arg: str) -> str:
    """What a backup by a profile would have in it, for a person to read."""
    return await context.backups.info(arg)


@method("admin.backup.Cancel", Access.EXECUTE)
async def cancel(context: Context, arg: str) -> None:
    """End the backup by a profile that is running. It leaves nothing."""
    context.backups.cancel(arg)
