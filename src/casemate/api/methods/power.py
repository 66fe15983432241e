"""Methods that start, stop and pause qubes, and report their state."""

from __future__ import annotations

from casemate.api.context import ALWAYS_RUNNING, Context
from casemate.api.events import FrameSink, Stream, Visible
from casemate.api.method import Access, method
from casemate.engine.power_table import Command, decide
from casemate.host.hypervisor import PowerState
from casemate.model.domain import Domain
from casemate.wire.admin import ADMIN
from casemate.wire.errors import NotImplementedHereError, ValueInvalidError


def machine(dest: Domain) -> str:
    """The name of a qube that has a machine on this host."""
    if dest.klass in ALWAYS_RUNNING:
        raise NotImplementedHereError(f"{dest.name} is a {dest.klass}: it has no machine here")
    return dest.name


@method("admin.vm.Start", Access.EXECUTE)
async def start(context: Context, dest: Domain) -> None:
    """Start the qube and wait until its agent answers."""
    await context.power.start(machine(dest))


@method("admin.vm.Shutdown", Access.EXECUTE)
async def shutdown(context: Context, dest: Domain, arg: str = "") -> None:
    """Ask the qube to shut down. ``force``: even if others get their network from it; ``wait``: until it has."""
    words = arg.split("+") if arg else []
    if not set(words) <= {"force", "wait"} or len(set(words)) != len(words):
        raise ValueInvalidError("The argument of Shutdown is made of 'force' and 'wait', joined with '+'")
    await context.power.shutdown(machine(dest), force="force" in words, wait="wait" in words)


@method("admin.vm.Kill", Access.EXECUTE)
async def kill(context: Context, dest: Domain) -> None:
    """End the qube's machine at once."""
    await context.power.kill(machine(dest))


@method("admin.vm.Pause", Access.EXECUTE)
async def pause(context: Context, dest: Domain) -> None:
    """Stop the qube's processors."""
    await context.power.pause(machine(dest))


@method("admin.vm.Unpause", Access.EXECUTE)
async def unpause(context: Context, dest: Domain) -> None:
    """Let the paused qube run."""
    await context.power.unpause(machine(dest))


@method("admin.vm.{word}", Access.EXECUTE, word=("Suspend", "Resume"))
async def suspend(context: Context, word: str, dest: Domain) -> None:
    """Suspend the qube, or wake it: not supported here; pause it instead."""
    decide(Command.SUSPEND, machine(dest), PowerState(context.state(dest)))


@method("admin.vm.CurrentState", Access.READ)
def current_state(context: Context, dest: Domain) -> str:
    """The qube's power state, memory in KiB, processor time in ns."""
    found = context.states.all().get(dest.name)
    mem, cpu, most = (0, 0, 0) if found is None else (found.memory_kib, found.cpu_time_ns, dest.maxmem << 10)
    return f"mem={mem} mem_static_max={most or mem} cputime={cpu} power_state={context.state(dest)}"


@method("admin.vm.Stats", Access.STREAM, shows_qubes=True)
def stats(context: Context, dest: Domain, transport: FrameSink, visible: Visible) -> Stream:
    """A stream of ``vm-stats`` events about the qube, or about all that run (dom0)."""
    return Stream(context.stats.add(transport, dest.name, visible), context.stats.discard)


@method("admin.vm.Console", Access.EXECUTE)
async def console(context: Context, dest: Domain, source: str) -> str:
    """The path of a terminal of this host that is the running qube's serial console.

    Only programs of this host can use it, as root or as the user that the daemon runs as.
    """
    if source != ADMIN:
        raise NotImplementedHereError("A terminal of this host cannot be handed to a qube")
    return await context.power.console(machine(dest))
