"""Warm images, from which qubes go on (engine/warm_images.py), and forks of running qubes (engine/forks.py)."""

from __future__ import annotations

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire.errors import ValueInvalidError, printable


@method("admin.casemate.warm.List", Access.READ)
def warm_list(context: Context) -> str:
    """Keys of all warm images, oldest first. A line each: the key, then template, seconds since the epoch of its making
    and last use, and its size in bytes."""
    return "".join(
        f"{image.key} template={image.template} made={image.made:.0f} used={image.used:.0f} bytes={image.bytes}\n"
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
    if arg and not (arg.isascii() and arg.isdecimal() and len(arg) < 5):
        raise ValueInvalidError(f"The argument of Fork is a number, not {printable(arg, 40)!r}")
    return "".join(f"{name}\n" for name in await context.forks.fork(dest.name, int(arg or "1"), source))
