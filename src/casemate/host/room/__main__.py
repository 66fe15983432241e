"""casemate-room: enters the wire room, opens libvirt's embedded driver in it, serves casemated until that ends.

``python -m casemate.host.room SOCKET USER NET OWNER``: descriptors of the connection and of the namespaces, -1 for
those when there are none yet, and the user that new ones are to belong to (-1: ours). The settings come from the
environment. The first line on the connection, a JSON object, tells how it went; requests follow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from casemate.host.libvirt_embed import driver_is_free
from casemate.host.libvirt_machines import connect
from casemate.host.orphans import become_subreaper
from casemate.host.room import namespaces
from casemate.host.room.namespaces import NoRoomError, Room
from casemate.host.room.server import Server, Wires
from casemate.settings import load
from casemate.wire.errors import CasemateError, HypervisorError

_DRIVER_SECONDS = 30.0
"""How long the process of an earlier daemon may take to let go of libvirt's directory: it ends when its daemon does,
which takes seconds on a busy machine. Shorter than tools wait for a daemon (60 s), so that they are told the reason."""
_MAX_OPENINGS = 5
"""How often the driver is opened. libvirt registers it anew each time, and refuses the eleventh: "Too many drivers"."""


def _enter(room: Room | None, owner: int | None) -> tuple[Room | None, str]:
    """The room that we are in from now on; None, and why, where this host has none for us."""
    try:
        room = room or namespaces.make(owner)
        namespaces.enter(room)
        namespaces.make_silent()
        return room, ""
    except (NoRoomError, OSError) as error:
        return None, str(error)


async def _serve(connection: socket.socket, room: Room | None, why: str) -> None:
    end = time.monotonic() + _DRIVER_SECONDS
    answer: dict[str, str] = {"why": why}
    # pyroute2 runs an event loop of its own, so it needs a thread where no other runs.
    thread = ThreadPoolExecutor(1, thread_name_prefix="wires")
    wires = None
    if room is not None:
        try:
            wires = await asyncio.get_running_loop().run_in_executor(thread, Wires)
        except (CasemateError, OSError) as error:
            answer["why"] = str(error)
    machines = None
    for _opening in range(_MAX_OPENINGS):
        await driver_is_free(load(), end - time.monotonic())
        try:
            machines = await connect(load())
            break
        except HypervisorError as error:
            answer["error"] = str(error)
            # Another process was faster, or one has just let go of the pid file. Which of the two libvirt says depends
            # on how far its driver got.
            if not any(hint in str(error) for hint in ("pid file", "is not active")) or time.monotonic() > end:
                break
            await asyncio.sleep(0.05)
    if machines is not None:
        answer.pop("error", None)
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 24)
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()
    if machines is not None:
        await Server(machines, wires, thread).serve(reader, writer)
        await machines.close()


def main(argv: list[str]) -> int:
    """Serve until the connection ends."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    number, user, net, owner = map(int, argv)
    connection = socket.socket(fileno=number)
    room, why = _enter(Room(user, net) if net >= 0 else None, owner if owner >= 0 else None)
    # The daemon keeps descriptors of the room: it outlives us, and pasta is told of it.
    fds = [] if room is None else [room.user, room.net]
    socket.send_fds(connection, [b"!" if room is None else b"+"], fds)
    become_subreaper()  # libvirt waits for the pid of an ended QEMU to vanish, which is our child then
    asyncio.run(_serve(connection, room, why))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
