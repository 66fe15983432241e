"""Methods of storage pools.

Besides the pools of the store there is ``linux-kernel``, as upstream has it: a read-only one whose volumes are the
kernels that qubes can boot. Upstream's manager reads it to offer them.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.model.system import PoolConfig, System
from casemate.wire.errors import PoolNotFoundError, ProtocolError, ValueInvalidError, printable

KERNELS = "linux-kernel"
"""Name of the pool of kernels, and of its driver."""


def _kernels(context: Context) -> Path:
    return context.store.path.parent / "kernels"


def _refuse_kernels(name: str) -> None:
    if name == KERNELS:
        raise ValueInvalidError(f"Pool {KERNELS} is always there and always the same: templates bring its kernels")


@method("admin.pool.List", Access.READ)
def list_pools(system: System) -> str:
    """The names of the pools."""
    return "".join(f"{name}\n" for name in sorted({*system.pools, KERNELS}))


@method("admin.pool.ListDrivers", Access.READ)
def list_drivers(context: Context) -> str:
    """The drivers, each with its options."""
    drivers = sorted(context.pools.drivers.items())
    return "".join(f"{' '.join((name, *(one.name for one in driver.options)))}\n" for name, driver in drivers)


@method("admin.pool.Info", Access.EXECUTE)
async def pool_info(context: Context, system: System, arg: str) -> str:
    """The configuration of a pool; size and usage of the file system that it lies on."""
    if arg == KERNELS:
        return f"name={KERNELS}\ndriver={KERNELS}\ndir_path={_kernels(context)}\n"
    pool: PoolConfig = system.pool(arg)
    pairs = {"name": pool.name, "driver": pool.driver, **pool.options}
    room = await context.pools.room(arg)
    if room is not None:
        pairs.update(size=str(room[0]), usage=str(room[1]))
    return "".join(f"{key}={text}\n" for key, text in pairs.items())


@method("admin.pool.UsageDetails", Access.EXECUTE)
async def pool_usage(context: Context, system: System, arg: str) -> str:
    """Size and usage of the file system that a pool lies on; empty where that is not known."""
    if arg == KERNELS:
        return ""
    system.pool(arg)
    room = await context.pools.room(arg)
    return "" if room is None else f"data_size={room[0]}\ndata_usage={room[1]}\n"


@method("admin.pool.volume.List", Access.READ)
def list_volumes(context: Context, system: System, arg: str) -> str:
    """The ids of the volumes in a pool."""
    if arg == KERNELS:
        return "".join(f"{name}\n" for name in context.possible.kernels())
    system.pool(arg)
    vids = {v.vid for d in system.domains.values() for v in d.configured_volumes() if v.pool == arg}
    return "".join(f"{vid}\n" for vid in sorted(vids))


@method("admin.pool.Add", Access.EXECUTE)
async def add_pool(context: Context, system: System, arg: str, payload: str) -> None:
    """Add a pool; the argument is its driver, the payload ``name=`` and the driver's options, a line for each.

    Where the pool could hold no volumes it is refused.
    """
    driver = context.pools.drivers.get(arg)
    if driver is None:
        raise ValueInvalidError(f"No such driver of pools: {printable(arg, 40)!r}")
    options: dict[str, str] = {}
    for line in payload.rstrip("\n").split("\n"):
        key, equals, text = line.partition("=")
        if not equals or key in options:
            raise ProtocolError(f"Not understood, or given twice: {printable(line, 80)!r}")
        options[key] = text
    name = options.pop("name", "")
    _refuse_kernels(name)
    driver.check(options)
    config = system.copy().add_pool(name, arg, options)  # raises what the change below would, before anything is made
    await context.pools.prepare(config)
    await asyncio.to_thread(context.store.change, lambda changed: changed.add_pool(name, arg, options))


@method("admin.pool.Remove", Access.WRITE)
def remove_pool(system: System, arg: str) -> None:
    """Remove a pool that holds no volumes."""
    _refuse_kernels(arg)
    system.remove_pool(arg)


@method("admin.pool.Set.revisions_to_keep", Access.WRITE)
def set_revisions(context: Context, system: System, arg: str, payload: str) -> None:
    """How many older states a pool keeps of each volume that has no number of its own; -1: none, as 0."""
    _set_option(context, system, arg, "revisions_to_keep", payload)


@method("admin.pool.Set.ephemeral_volatile", Access.WRITE)
def set_ephemeral(context: Context, system: System, arg: str, payload: str) -> None:
    """Whether volatile volumes are encrypted with a throw-away key. No driver does: only ``False`` is accepted."""
    _set_option(context, system, arg, "ephemeral_volatile", payload)


def _set_option(context: Context, system: System, name: str, option: str, text: str) -> None:
    _refuse_kernels(name)
    pool: PoolConfig = system.pool(name)
    driver = context.pools.drivers.get(pool.driver)
    if driver is None:
        raise PoolNotFoundError(f"Pool {name} has driver {pool.driver}, which this host does not have")
    driver.check({option: text})
    if not driver.option(option).changeable:
        raise ValueInvalidError(f"Option {option} of pool {name} cannot be changed")
    system.set_pool_option(name, option, text)
