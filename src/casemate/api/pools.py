"""Methods of storage pools."""

from __future__ import annotations

from casemate.api.method import Access, method
from casemate.model.kinds import Bool
from casemate.model.system import PoolConfig, System
from casemate.wire import names
from casemate.wire.errors import ProtocolError, ValueInvalidError, printable

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


@method("admin.pool.Info", Access.READ)
def pool_info(system: System, arg: str) -> str:
    """The configuration of a pool."""
    pool: PoolConfig = system.pool(arg)
    pairs = {"name": pool.name, "driver": pool.driver, **pool.options}
    return "".join(f"{key}={text}\n" for key, text in pairs.items())


@method("admin.pool.UsageDetails", Access.READ)
def pool_usage(system: System, arg: str) -> str:
    """What of a pool is used: not known, as its files share the host's file system."""
    system.pool(arg)
    return ""


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
    """Whether volatile volumes of a pool are encrypted with a key that nobody keeps."""
    system.set_pool_option(arg, "ephemeral_volatile", str(Bool().parse(payload)))
