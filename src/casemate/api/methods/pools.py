"""Methods of storage pools."""

from __future__ import annotations

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.kinds import Bool
from casemate.model.system import PoolConfig, System
from casemate.wire import names
from casemate.wire.errors import NotImplementedHereError, ProtocolError, ValueInvalidError, printable

DRIVERS = {"qcow2": ("dir_path", "revisions_to_keep", "ephemeral_volatile")}
"""The drivers of pools with the options that each takes."""


@method("admin.pool.List", Access.READ)
def list_pools(system: System) -> str:
    """The names of the pools."""
    return "".join(f"{name}\n" for name in sorted(system.pools))


@method("admin.pool.ListDrivers", Access.READ)
def list_drivers() -> str:
    """The drivers, each with its options."""
    return "".join(f"{' '.join((driver, *options))}\n" for driver, options in DRIVERS.items())


@method("admin.pool.Info", Access.EXECUTE)
async def pool_info(context: Context, system: System, arg: str) -> str:
    """The configuration of a pool; size and usage of the file system that it lies on."""
    pool: PoolConfig = system.pool(arg)
    pairs = {"name": pool.name, "driver": pool.driver, **pool.options}
    room = await context.pools.room(arg)
    if room is not None:
        pairs.update(size=str(room[0]), usage=str(room[1]))
    return "".join(f"{key}={text}\n" for key, text in pairs.items())


@method("admin.pool.UsageDetails", Access.EXECUTE)
async def pool_usage(context: Context, system: System, arg: str) -> str:
    """Size and usage of the file system that a pool lies on; empty where that is not known."""
    system.pool(arg)
    room = await context.pools.room(arg)
    return "" if room is None else f"data_size={room[0]}\ndata_usage={room[1]}\n"


@method("admin.pool.volume.List", Access.READ)
def list_volumes(system: System, arg: str) -> str:
    """The ids of the volumes in a pool."""
    system.pool(arg)
    vids = {v.vid for d in system.domains.values() for v in d.configured_volumes() if v.pool == arg}
    return "".join(f"{vid}\n" for vid in sorted(vids))


@method("admin.pool.Add", Access.WRITE)
def add_pool(system: System, arg: str, payload: str) -> None:
    """Add a pool; the argument is its driver, the payload ``name=`` and the driver's options, a line for each."""
    if arg not in DRIVERS:
        raise ValueInvalidError(f"No such driver of pools: {printable(arg, 40)!r}")
    options: dict[str, str] = {}
    for line in payload.rstrip("\n").split("\n"):
        key, equals, text = line.partition("=")
        if not equals or key in options:
            raise ProtocolError(f"Not understood, or given twice: {printable(line, 80)!r}")
        options[key] = text
    name = options.pop("name", "")
    unknown = sorted(options.keys() - set(DRIVERS[arg]))
    if unknown:
        raise ValueInvalidError(f"Driver {arg} has no option {printable(unknown[0], 40)!r}")
    if any(not " " <= c <= "~" for text in options.values() for c in text):
        raise ValueInvalidError("An option has characters that are not printable ASCII")
    directory = options.get("dir_path")
    if directory is not None and (
        not directory.startswith("/") or ".." in directory.split("/") or len(directory) > 512
    ):
        raise ValueInvalidError("dir_path must be an absolute path without '..'")
    if "revisions_to_keep" in options and options["revisions_to_keep"] != "-1":
        names.number(options["revisions_to_keep"], "revisions_to_keep", 0, 1000)
    if "ephemeral_volatile" in options and Bool().parse(options["ephemeral_volatile"]):
        raise NotImplementedHereError("No pool here can encrypt volumes")
    system.add_pool(name, arg, options)


@method("admin.pool.Remove", Access.WRITE)
def remove_pool(system: System, arg: str) -> None:
    """Remove a pool in which no volume lies."""
    system.remove_pool(arg)


@method("admin.pool.Set.revisions_to_keep", Access.WRITE)
def set_revisions(system: System, arg: str, payload: str) -> None:
    """How many older states of its volumes a pool keeps; -1 for as many as the driver likes."""
    if payload != "-1":
        names.number(payload, "revisions_to_keep", 0, 1000)
    system.set_pool_option(arg, "revisions_to_keep", payload)


@method("admin.pool.Set.ephemeral_volatile", Access.WRITE)
def set_ephemeral(system: System, arg: str, payload: str) -> None:
    """Whether volatile volumes of a pool are encrypted with a key that nobody keeps: no, so only ``False`` is true."""
    system.pool(arg)
    if Bool().parse(payload):
        raise NotImplementedHereError(f"Pool {arg} cannot encrypt volumes")
    system.set_pool_option(arg, "ephemeral_volatile", "False")
