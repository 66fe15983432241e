"""Methods of a qube's volumes."""

from __future__ import annotations

from dataclasses import replace

from casemate.api.context import Context
from casemate.api.imports import MAX_IMAGE
from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.model.kinds import Bool
from casemate.wire import names
from casemate.wire.errors import NotImplementedHereError, ValueInvalidError


@method("admin.vm.volume.List", Access.READ)
def list_volumes(dest: Domain) -> str:
    """The names of the qube's volumes."""
    return "".join(f"{name}\n" for name, volume in dest.volumes.items() if volume is not None)


@method("admin.vm.volume.Info", Access.EXECUTE)
async def info(context: Context, dest: Domain, arg: str) -> str:
    """How a volume is configured, and how much of the disk it takes."""
    volume = dest.volume(arg)
    pairs: dict[str, object] = {
        "pool": volume.pool,
        "vid": volume.vid,
        "size": volume.size,
        "usage": await context.volumes.usage(dest.name, arg),
        "rw": volume.rw,
        "source": volume.source or "",
        "path": "",
        "save_on_stop": volume.save_on_stop,
        "snap_on_start": volume.snap_on_start,
        "revisions_to_keep": volume.revisions_to_keep,
        "ephemeral": bool(volume.ephemeral),
    }
    if volume.snap_on_start:
        pairs["is_outdated"] = context.volumes.is_outdated(dest.name, arg)
    return "".join(f"{key}={text}\n" for key, text in pairs.items())


@method("admin.vm.volume.ListSnapshots", Access.EXECUTE)
async def list_snapshots(context: Context, dest: Domain, arg: str) -> str:
    """The older states of a volume, oldest first; each can be given to Revert."""
    dest.volume(arg)
    return "".join(f"{name}\n" for name in context.volumes.revisions(dest.name, arg))


@method("admin.vm.volume.Revert", Access.EXECUTE)
async def revert(context: Context, dest: Domain, arg: str, payload: str) -> None:
    """Give a volume of a halted qube the content of an older state. The present content becomes an older state."""
    dest.volume(arg)
    await context.volumes.revert(dest.name, arg, payload)


@method("admin.vm.volume.Clear", Access.EXECUTE)
async def clear(context: Context, dest: Domain, arg: str) -> None:
    """Replace a volume of a halted qube by an empty one. Its content is lost."""
    dest.volume(arg)
    await context.volumes.clear(dest.name, arg)


@method("admin.vm.volume.{verb}", Access.EXECUTE, verb=("Import", "ImportWithSize"))
async def import_small(verb: str, dest: Domain, arg: str, payload: bytes = b"") -> None:
    """Replace the content of a volume by the payload. Only tools of this host can send it, not qubes."""
    dest.volume(arg)
    raise NotImplementedHereError(f"{dest.name}: data for a volume is taken from this host's own tools only")


@method("admin.vm.volume.Resize", Access.EXECUTE)
async def resize(context: Context, dest: Domain, arg: str, payload: str) -> None:
    """Make a volume larger; the payload is its size in bytes."""
    dest.volume(arg)
    await context.volumes.resize(dest.name, arg, names.number(payload, "size", 1, MAX_IMAGE))


@method("admin.vm.volume.CloneFrom", Access.EXECUTE)
async def clone_from(context: Context, dest: Domain, source: str, arg: str) -> str:
    """A token for the volume, which CloneTo takes once."""
    dest.volume(arg)
    return context.tokens.issue(dest.name, arg, source)


@method("admin.vm.volume.CloneTo", Access.EXECUTE)
async def clone_to(context: Context, dest: Domain, source: str, arg: str, payload: str) -> None:
    """Replace the content of a volume by a copy of the volume that the token stands for."""
    dest.volume(arg)
    origin, volume = context.tokens.redeem(payload, source)
    if volume != arg:
        raise ValueInvalidError(f"The token is that of a volume {volume}, not {arg}")
    await context.volumes.clone(origin, dest.name, arg)


@method("admin.vm.volume.Set.revisions_to_keep", Access.WRITE)
def set_revisions(dest: Domain, arg: str, payload: str) -> None:
    """How many older states of a volume are kept; until this is set, as many as its pool says."""
    kept = -1 if payload == "-1" else names.number(payload, "revisions_to_keep", 0, 1000)
    dest.set_volume(replace(dest.volume(arg), revisions_to_keep=kept, own_revisions=True))


@method("admin.vm.volume.Set.rw", Access.WRITE)
def set_rw(dest: Domain, arg: str, payload: str) -> None:
    """Whether the qube may write to a volume."""
    dest.set_volume(replace(dest.volume(arg), rw=bool(Bool().parse(payload))))


@method("admin.vm.volume.Set.ephemeral", Access.WRITE)
def set_ephemeral(dest: Domain, arg: str, payload: str) -> None:
    """Whether a volume is encrypted with a throw-away key. No pool here can do that: only ``False`` is accepted."""
    volume = dest.volume(arg)
    if Bool().parse(payload):
        raise NotImplementedHereError(f"{dest.name}: volume {arg} cannot be encrypted by its pool")
    if volume.ephemeral:
        dest.set_volume(replace(volume, ephemeral=False))
