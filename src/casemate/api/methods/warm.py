"""Warm images, from which qubes go on, and forks and snapshots of running qubes (engine: warm_images, forks,
snapshots)."""

from __future__ import annotations

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire.errors import ValueInvalidError, printable
from casemate.wire.images import ListedImage, Snapshot, build_lines


@method("admin.casemate.warm.List", Access.READ)
def warm_list(context: Context) -> str:
    """Keys of all warm images, oldest first. A line each: the key, then template, seconds since the epoch of its making
    and last use, and its size in bytes."""
    return build_lines(
        ListedImage(image.key, image.template, round(image.made), round(image.used), image.bytes)
        for image in context.warm.list()
    )


@method("admin.casemate.warm.Build", Access.EXECUTE)
async def warm_build(context: Context, dest: Domain) -> str:
    """Make the warm image for disposables of a disposable template, or for an app qube and others like it, unless it is
    there; its key. Takes as long as a boot."""
    return (await context.warm.build(dest.name)).key


@method("admin.casemate.warm.Drop", Access.EXECUTE)
async def warm_drop(context: Context, arg: str) -> None:
    """Remove the warm image of that key. Qubes that came from it run on."""
    if not await context.warm.drop(arg):
        raise ValueInvalidError(f"There is no warm image {printable(arg, 40)!r}")


@method("admin.casemate.vm.Fork", Access.EXECUTE)
async def fork(context: Context, dest: Domain, source: str, arg: str = "") -> str:
    """Make running disposables of a running qube, with its memory, programs and files as they are; their names, a line
    each. The argument says how many (default: 1)."""
    return "".join(f"{name}\n" for name in await context.forks.fork(dest.name, _count("argument", arg), source))


@method("admin.casemate.vm.Snapshot", Access.EXECUTE)
async def take_snapshot(context: Context, dest: Domain, arg: str) -> None:
    """Keep a running qube as it is now, with its memory, programs and files, under the name in the argument."""
    await context.snapshots.take(dest.name, arg)


@method("admin.casemate.snapshot.List", Access.READ)
def list_snapshots(context: Context) -> str:
    """All snapshots of running qubes, oldest first. A line each: the name, then its qube, the disposable template of
    what goes on from it, seconds since the epoch of its making, and its size in bytes without disks."""
    return build_lines(
        Snapshot(one.name, one.qube, one.base, round(one.made), one.bytes) for one in context.snapshots.list()
    )


@method("admin.casemate.snapshot.Resume", Access.EXECUTE)
async def resume_snapshot(context: Context, source: str, arg: str, payload: str = "") -> str:
    """Make running disposables that go on from a snapshot; their names, a line each. The payload says how many
    (default: 1)."""
    names = await context.snapshots.resume(arg, _count("payload", payload), source)
    return "".join(f"{name}\n" for name in names)


@method("admin.casemate.snapshot.Drop", Access.EXECUTE)
async def drop_snapshot(context: Context, arg: str) -> None:
    """Remove a snapshot. Qubes that went on from it run on."""
    await context.snapshots.drop(arg)


def _count(what: str, text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 5):
        raise ValueInvalidError(f"The {what} is a number, not {printable(text, 40)!r}")
    return int(text or "1")
