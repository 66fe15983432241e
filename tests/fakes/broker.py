"""A broker with its sockets over qubes that exist only by name, and the two ends that a test plays."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from casemate.host.process import Runner
from casemate.qrexec.ask import Prompters
from casemate.qrexec.broker import Broker
from casemate.qrexec.call_sockets import CallSockets
from casemate.qrexec.calls import Calls
from casemate.qrexec.evaluate import QubeInfo, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.listener import CallListener
from casemate.wire.errors import StartError
from tests.builders import settings_in, within

UUID = "00000000-0000-4000-8000-00000000000"


POLICY = """
ask.Vault  *  work  vault      ask
ask.Many   *  work  @default   ask default_target=vault
ask.Many   *  work  @anyvm     ask default_target=dvm
ok         *  work  @anyvm     allow notify=yes
far        *  work  away       allow
no.Tell    *  work  vault      deny notify=no
slow       *  work  vault      allow
fails      *  work  fails      allow
"""


class World:
    """A broker with its sockets, over qubes that exist only by name; what it asks others to do is real sockets too."""

    def __init__(self, directory: Path, seconds: float = 5.0) -> None:
        self.settings = settings_in(directory)
        for path in (self.settings.policy_dir, self.settings.policy_run_dir):
            path.mkdir(mode=0o700, parents=True)
        self.file = self.settings.policy_dir / "30-user.policy"
        self.file.write_text(POLICY)
        self.qubes = [
            QubeInfo("dom0", "AdminVM", "00000000-0000-0000-0000-000000000000", power_state="Running"),
            QubeInfo("work", "AppVM", UUID + "1", icon="appvm-blue", power_state="Running"),
            QubeInfo("vault", "AppVM", UUID + "2", icon="appvm-black", power_state="Running"),
            QubeInfo("dvm", "AppVM", UUID + "3", template_for_dispvms=True),
            QubeInfo("fails", "AppVM", UUID + "4"),
            QubeInfo("hidden", "AppVM", UUID + "5", internal=True),
            QubeInfo("relay", "AppVM", UUID + "6", power_state="Running"),
            QubeInfo("away", "RemoteVM", UUID + "7", relayvm="relay", transport_rpc="my.Ssh", remote_name="theirs"),
        ]
        self.policy = PolicyFiles(self.settings.policy_dir, self.settings.policy_run_dir)
        self.calls = Calls()
        self.prompters = Prompters(self.settings.state / "prompter", Runner(), seconds)
        self.call_sockets = CallSockets(self.settings, self.policy, self.info, self.prompters, self.calls)
        self.listener = CallListener(self.settings)
        self.broker = Broker(
            self.settings, self.listener, self.policy, self.info,
            SimpleNamespace(is_running=self._is_running, start=self._start),
            SimpleNamespace(create=self._make, end=self._remove), self._run_on_host,
            self.prompters.ask, self.calls, self.prompters.notify, self._silence,
        )  # fmt: skip
        self.on_host: list[tuple[str, ...]] = []
        """What this host was asked for: (source, service, argument, target)."""
        self.silent: dict[str, str] = {}
        """Qubes that give no sign of life, and why."""
        self.made = 0
        """How often a disposable was asked for."""
        self.starting = asyncio.Event()
        self.starting.set()
        self.removed: asyncio.Queue[str] = asyncio.Queue()
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._servers: list[asyncio.Server] = []

    def info(self) -> SystemInfo:
        return SystemInfo.fixed(self.qubes)

    async def _silence(self, name: str) -> str:
        return self.silent.get(name, "")

    async def _start(self, name: str) -> None:
        await self.starting.wait()
        if name == "fails":
            raise StartError("no memory")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for what the broker does by itself."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def _make(self, template: str) -> str:
        self.made += 1
        await self.starting.wait()
        return "vault"  # a link listens there

    async def _remove(self, name: str) -> None:
        self.removed.put_nowait(name)

    def _is_running(self, name: str) -> bool:
        return name in ("vault", "relay") and self.starting.is_set()

    async def _run_on_host(self, _stream: socket.socket, *about: str) -> None:
        self.on_host.append(about)

    async def __aenter__(self) -> World:
        await self.call_sockets.open()
        for name in ("work", "vault", "relay"):
            self.settings.qube_run(name).mkdir(parents=True)
        await self.listener.open("work")
        for name in ("vault", "relay"):
            self._servers.append(await asyncio.start_unix_server(self._link, self.settings.link_socket(name)))
        return self

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.put_nowait(await reader.read(4096))
        await reader.read()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        await self.call_sockets.close()
        await self.listener.close_all()
        await self.broker.close()

    async def connect(self, service: str, target: str = "vault", **more: object) -> socket.socket:
        """The call as a link asks for it."""
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        await loop.sock_connect(connection, str(self.settings.qube_run("work") / "broker.sock"))
        await loop.sock_sendall(connection, json.dumps({"service": service, "target": target, **more}).encode() + b"\n")
        return connection

    async def call(self, service: str, target: str = "vault") -> bytes:
        """The answer's bytes; an allowed call ends at once with status 3."""
        with await self.connect(service, target) as connection:
            return await answer(connection)


async def answer(connection: socket.socket) -> bytes:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, ready.set)
    await ready.wait()
    loop.remove_reader(connection)
    data, fds, _flags, _address = socket.recv_fds(connection, 4096, 1)
    for fd in fds:
        os.close(fd)
    if fds:
        await loop.sock_sendall(connection, b"exit 3\n")
    return data


DENY, ALLOW = b'{"result": "deny"}\n', b'{"result": "allow"}\n'


class Peer:
    """The other end of a line socket: a prompter, a watcher."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def at(cls, path: Path) -> Peer:
        return cls(*await asyncio.open_unix_connection(path))

    async def read(self) -> dict[str, Any]:
        line = await within(10, self.reader.readline())
        return json.loads(line) if line else {}

    def write(self, **body: object) -> None:
        self.writer.write(json.dumps(body).encode() + b"\n")

    def close(self) -> None:
        self.writer.close()


def run(work: Callable[[World], Awaitable[None]], tmp_path: Path, **options: float) -> None:
    async def body() -> None:
        async with World(tmp_path, **options) as world:
            await work(world)

    asyncio.run(within(30, body()))
