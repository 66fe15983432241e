"""The Admin API's real server on a real socket, over a real store and fake parts, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.api.context import Context
from casemate.api.events import Subscriptions
from casemate.api.methods import INTERNAL, MISC
from casemate.api.server import Server
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.store.store import Store
from tests.builders import settings_in
from tests.fakes.parts import FakeParts


class FakeDaemon:
    """What a test can reach of the daemon."""

    def __init__(self, socket: Path, store: Store, parts: FakeParts) -> None:
        self.socket = socket
        self.store = store
        self.parts = parts
        self.loop: asyncio.AbstractEventLoop
        self.server: Server
        self.context: Context

    def client(self) -> Qubes:
        """A client of this daemon, which starts no other."""
        return Qubes(Transport(settings_in(self.socket.parents[1]), daemon=()))


@contextmanager
def running(directory: Path, *, request_seconds: float = 30.0, max_connections: int = 256) -> Iterator[FakeDaemon]:
    """A daemon that serves ``directory``'s store until the block ends."""
    for policy in (directory / "policy.d", directory / "run" / "policy.d"):  # as the daemon makes them
        policy.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store(directory / "qubes.xml")
    daemon = FakeDaemon(directory / "run" / "qubesd.sock", store, FakeParts(store))
    ready, stop = threading.Event(), asyncio.Event()
    failed: list[BaseException] = []

    async def serve() -> None:
        daemon.loop = asyncio.get_running_loop()
        base = daemon.socket.parent
        daemon.context = daemon.parts.context(Subscriptions(store))
        daemon.server = Server(daemon.context, request_seconds=request_seconds, max_connections=max_connections)
        others = {"internal": Server(daemon.context, INTERNAL), "misc": Server(daemon.context, MISC)}
        await daemon.server.start(daemon.socket)
        for name, server in others.items():
            await server.start(base / f"qubesd.{name}.sock")
        ready.set()
        await stop.wait()
        for server in (daemon.server, *others.values()):
            await server.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        if not failed:
            yield daemon
    finally:
        if not failed:
            daemon.loop.call_soon_threadsafe(stop.set)
        thread.join()
        if failed:
            raise failed[0]
