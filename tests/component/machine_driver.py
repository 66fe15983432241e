"""A process that owns the hypervisor, told what to do line by line; killed at will by the test.

libvirt's embedded driver has one root per process, so each test of it needs processes of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from uuid import UUID

from casemate.host.hypervisor import Disk, Hypervisor, MachineEvent, MachineSpec
from casemate.host.libvirt_machines import connect
from casemate.host.orphans import become_subreaper
from casemate.settings import load
from casemate.wire.errors import CasemateError


def spec_of(data: dict[str, str]) -> MachineSpec:
    """A machine that says hello and switches itself off once it runs; QEMU's user is its own when we are root."""
    run = Path(data["run"])
    root = os.geteuid() == 0
    return MachineSpec(
        name=data["name"], uuid=UUID(data["uuid"]), title="test", memory_mib=128, vcpus=1, acceleration="tcg",
        kernel=Path(data["kernel"]), initrd=Path(data["initrd"]), cmdline="casemate.init=probe",
        disks=(Disk("vda", "root", Path(data["disk"]), "raw"),),
        channel=run / "channel.sock", console=run / "console.sock",
        uid=1_900_000_007 if root else None, gid=1_900_000_000 if root else None,
    )  # fmt: skip


async def act(machines: Hypervisor, events: asyncio.Queue[MachineEvent], words: list[str]) -> object:
    """One command; what it returns is printed as JSON."""
    verb, *rest = words
    data = json.loads(rest[0]) if rest and rest[0].startswith("{") else {}
    uuid = UUID(data["uuid"]) if data else None
    if verb == "list":
        return [[m.name, m.state.value, m.xid > 0] for m in await machines.list()]
    assert uuid is not None
    if verb in ("define", "start_paused"):
        return await getattr(machines, verb)(spec_of(data))
    if verb == "info":
        info = await machines.info(uuid)
        return None if info is None else [info.name, info.state.value, info.xid > 0]
    if verb == "await":
        async with asyncio.timeout(60):
            while (event := await events.get()).kind.value != data["kind"]:
                pass
        return [event.name, event.kind.value]
    return await getattr(machines, verb)(uuid)


async def serve() -> None:
    """Obey until end of file."""
    become_subreaper()
    machines = await connect(load())
    events: asyncio.Queue[MachineEvent] = asyncio.Queue()
    machines.subscribe(events.put_nowait)
    print(json.dumps("ready"), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await act(machines, events, line.strip().split(" ", 1))
        except CasemateError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)
    await machines.close()


if __name__ == "__main__":
    asyncio.run(serve())
