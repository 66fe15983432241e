"""The daemon's part that gives cards to net qubes, alone, in a namespace that is its host. Run as a program by tests:
``card_lab.py RUN PID``, PID a process in the wire room. Each line of its standard input is a request, JSON, answered by
a line: ``{"do": [method, arguments...]}`` calls ``CardUplinks``; ``{"die": stage}`` has it killed at that stage
of what follows, as ``kill -9`` would.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from casemate.host import card_records, cards
from casemate.host.card_records import CardRecord
from casemate.host.process import Runner
from casemate.host.room.namespaces import Room
from casemate.model.uplinks import parse_uplink
from casemate.network.card_uplink import CardUplinks
from casemate.settings import Settings
from casemate.wire.errors import CasemateError

STAGES = {
    "recorded": (card_records, "write", True),
    "held": (Runner, "spawn", True),
    "moving": (cards, "_own_namespace", False),
    "moved": (cards, "take", True),
    "shared": (cards, "share", True),
    "returning": (CardRecord, "undo", False),
    "returned": (CardRecord, "undo", True),
    "released": (card_records, "let_go", True),
}
"""Where it can be killed: before (False) or after (True) a step."""


def die_at(stage: str) -> None:
    """Have this process killed before or after a step."""
    holder, name, after = STAGES[stage]
    step: Callable[..., Any] = getattr(holder, name)

    def now() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def plain(*arguments: Any, **options: Any) -> Any:
        if after:
            step(*arguments, **options)
        now()

    async def waiting(*arguments: Any, **options: Any) -> Any:
        if after:
            await step(*arguments, **options)
        now()

    setattr(holder, name, waiting if asyncio.iscoroutinefunction(step) else plain)


async def given_up(run: Path, name: str, work: Coroutine[Any, Any, None]) -> None:
    """A start that is cancelled while the kernel moves the card, which takes a moment here."""
    take = cards.take

    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        take(*arguments)

    cards.take = slowly
    task = asyncio.create_task(work)
    while not card_records.path_of(run, name).exists():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.15)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await asyncio.sleep(0.4)  # what was not waited for has ended by now, too
    cards.take = take


async def main(run: Path, pid: int) -> None:
    """Serve until the end of the input."""
    net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    room = Room(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY), net)
    settings = Settings(state=run, run=run, cache=run, hypervisor="embed", prefix="t-")
    uplinks = CardUplinks(settings, Runner(), root=os.environ.get("LAB_ROOT", "1") == "1")
    changes = []
    uplinks.on_change = lambda: changes.append(1)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        answer: Any = None
        try:
            if "die" in request:
                die_at(request["die"])
            elif "full" in request:
                # No file takes another byte, as on a full disk.
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (0 if request["full"] else -1, -1))
            elif "cancel" in request:
                name, uplink, interface, mac = request["cancel"]
                await given_up(run, name, uplinks.start(name, parse_uplink(uplink), interface, mac, room))
            elif "changes" in request:
                answer = len(changes)
            else:
                method, *arguments = request["do"]
                if method == "start":
                    name, uplink, interface, mac = arguments
                    await uplinks.start(name, parse_uplink(uplink), interface, mac, room)
                elif method in ("adopt", "look"):
                    found = await getattr(uplinks, method)(*arguments, room)
                    answer = sorted(found) if method == "look" else found
                elif method == "reclaim":
                    await uplinks.reclaim(dict.fromkeys(arguments[0]))
                elif method == "running":
                    answer = {name: [str(way.uplink), way.interface] for name, way in uplinks.running().items()}
                else:
                    await uplinks.stop(*arguments)
        except CasemateError as error:
            answer = {"error": str(error)}
        print(json.dumps({"answer": answer}), flush=True)
    uplinks.release()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
