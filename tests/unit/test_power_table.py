"""Every command in every state ends as the table says: through the Admin API, on machines of the tests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from casemate.api.dispatch import execute
from casemate.api.methods import METHODS
from casemate.engine.power_table import STATES, TABLE, Command, Way, decide
from casemate.host.hypervisor import MachineInfo, PowerState
from casemate.wire.admin import Request, parse_reply
from casemate.wire.errors import CasemateError
from tests.builders import uuid, within
from tests.fakes.engine import Engine

CALLS = {
    Command.START: ("admin.vm.Start", "", b""),
    Command.SHUTDOWN: ("admin.vm.Shutdown", "", b""),
    Command.KILL: ("admin.vm.Kill", "", b""),
    Command.PAUSE: ("admin.vm.Pause", "", b""),
    Command.UNPAUSE: ("admin.vm.Unpause", "", b""),
    Command.SUSPEND: ("admin.vm.Suspend", "", b""),
    Command.CONSOLE: ("admin.vm.Console", "", b""),
    Command.REMOVE: ("admin.vm.Remove", "", b""),
    Command.RENAME: ("admin.vm.property.Set", "name", b"other"),
    Command.RESIZE: ("admin.vm.volume.Resize", "private", b"%d" % (3 << 30)),
    Command.REPLACE: ("admin.vm.volume.Clear", "private", b""),
    Command.CHANGE: ("admin.vm.property.Set", "virt_mode", b"hvm"),
    Command.DEVICE: ("admin.vm.device.block.Detach", "dom0+sda+_", b""),
}
"""A call for each command. Those that are not here have tests of their own below."""

MACHINE = {PowerState.PAUSED: PowerState.PAUSED, PowerState.SUSPENDED: PowerState.SUSPENDED}
"""What the hypervisor says of a machine in a state; in all other states but halted it runs."""


async def call(engine: Engine, context: object, command: Command) -> None:
    method, argument, payload = CALLS[command]
    request = Request(method, argument, "dom0", "work", payload)
    parse_reply(await execute(context, METHODS[method], request))  # type: ignore[arg-type]


def put(engine: Engine, context: object, state: PowerState) -> None:
    """Bring ``work`` into a state."""
    states = context.states  # type: ignore[attr-defined]
    states.put("work", uuid(2), state)
    if state is PowerState.HALTED:
        engine.machines.machines.pop(uuid(2), None)
    else:
        found = MACHINE.get(state, PowerState.RUNNING)
        engine.machines.machines[uuid(2)] = MachineInfo("work", uuid(2), found)


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(Command) and all(set(row) == set(STATES) for row in TABLE.values())
    for row in TABLE.values():
        for one in row.values():
            assert one.way is not Way.REFUSES or one.words


@pytest.mark.parametrize("command", CALLS)
def test_refused_as_the_table_says(tmp_path: Path, command: Command) -> None:
    async def scenario() -> None:
        engine = Engine(tmp_path)
        context = (await engine.daemon()).context
        for state, outcome in TABLE[command].items():
            if outcome.way is not Way.REFUSES:
                continue
            put(engine, context, state)
            with pytest.raises(outcome.error) as caught:
                await call(engine, context, command)
            assert f"work {outcome.words}" in str(caught.value), state
            assert context.states.of("work") is state, "a refusal changes nothing"  # type: ignore[attr-defined]
        put(engine, context, PowerState.HALTED)

    asyncio.run(scenario())


@pytest.mark.parametrize("command", [c for c in CALLS if c is not Command.CONSOLE])
def test_carried_out_as_the_table_says(tmp_path: Path, command: Command) -> None:
    """What is done, or is done already, is not refused for the state; what waits, waits for the end of that state."""

    async def scenario() -> None:
        engine = Engine(tmp_path)
        context = (await engine.daemon()).context
        for state, outcome in TABLE[command].items():
            if outcome.way is Way.REFUSES or state is PowerState.TRANSIENT:
                continue
            if context.store.snapshot().domains.get("work") is None:
                break  # it was removed
            put(engine, context, state)
            waiting = asyncio.ensure_future(call(engine, context, command))
            if outcome.way is Way.WAITS:
                await asyncio.sleep(0.05)  # time in which it would have ended
                assert not waiting.done(), state
                engine.machines.end(uuid(2))
            try:
                await within(10, waiting)
            except CasemateError as error:
                # An error of another kind: the fake machine has no guest that could answer, and no device.
                assert type(error) is not outcome.error or "work is" not in str(error), (state, error)
            if command is Command.START:
                assert context.states.of("work") is PowerState.RUNNING, state  # type: ignore[attr-defined]
            if command is Command.KILL:
                assert context.states.of("work") is PowerState.HALTED, state  # type: ignore[attr-defined]
            put(engine, context, PowerState.HALTED)

    asyncio.run(scenario())


def test_a_start_of_one_that_does_not_stop_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = Engine(tmp_path)
        context = (await engine.daemon()).context
        with engine.store.write() as transaction:
            transaction.system.domains["work"].set_text("shutdown_timeout", "1")
        put(engine, context, PowerState.HALTING)
        with pytest.raises(CasemateError, match="work is shutting down, and has not halted within 1 seconds"):
            await within(20, call(engine, context, Command.START))

    asyncio.run(scenario())


def test_a_shutdown_of_one_that_ends_already_waits_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = Engine(tmp_path)
        context = (await engine.daemon()).context
        put(engine, context, PowerState.DYING)
        await context.power.shutdown("work")
        waiting = asyncio.ensure_future(context.power.shutdown("work", wait=True))
        await asyncio.sleep(0.05)  # time in which it would have ended
        assert not waiting.done()
        engine.machines.end(uuid(2))
        await within(10, waiting)

    asyncio.run(scenario())


def test_a_call_is_refused_where_a_start_is() -> None:
    """Calls of qubes start their target, and qvm-run says the same of one that does not answer."""
    from casemate.cli import silence

    for state in STATES:
        assert (TABLE[Command.RUN][state].way is Way.REFUSES) == (TABLE[Command.START][state].way is Way.REFUSES)
    with pytest.raises(CasemateError, match="is paused, so it does not answer: qvm-unpause"):
        decide(Command.RUN, "work", PowerState.PAUSED)
    assert "so it does not answer: qvm-unpause" in Path(silence.__file__).read_text()
