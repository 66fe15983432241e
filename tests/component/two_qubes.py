"""Qubes without machines: real links, real agents, the real broker and policy between them, programs as services."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

from casemate.host.process import Runner
from casemate.qrexec.broker import Broker
from casemate.qrexec.evaluate import QubeInfo, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.host_service import run_on_host
from casemate.qrexec.listener import CallListener
from casemate.wire.errors import CallRefusedError
from tests.builders import settings_in
from tests.component.rig import SOURCE, Rig

NAMES = ("work", "vault", "hidden")


class Qubes:
    """``rigs`` by name; ``policy`` writes the one policy file; ``tool`` runs a guest's tool in a qube."""

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        self.settings = settings_in(directory)
        self.settings.policy_dir.mkdir()
        self.rigs: dict[str, Rig] = {}
        self.ended: list[str] = []
        for name in names:
            place = self.settings.qube_run(name)
            place.mkdir(parents=True)
            self.rigs[name] = Rig(place)
        infos = [
            QubeInfo(name, "AppVM", f"00000000-0000-0000-0000-00000000000{n}", power_state="Running",
                     internal=name == "hidden", default_dispvm="vault", template_for_dispvms=name == "vault")
            for n, name in enumerate(names, 1)
        ]  # fmt: skip
        infos.append(QubeInfo("dom0", "AdminVM", "00000000-0000-0000-0000-000000000000", power_state="Running"))
        self._info = SystemInfo.fixed(infos)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._broker(),))
        self._open = threading.Event()

    def policy(self, text: str, name: str = "30-test.policy") -> None:
        (self.settings.policy_dir / name).write_text(text)

    async def _broker(self) -> None:
        async def nothing(name: str) -> None:
            self.ended.append(name)

        async def refuse(*_: object) -> None:
            raise CallRefusedError("it does not start")

        async def disposable(_template: str) -> str:
            return "vault"

        runner = Runner()

        async def on_host(stream: socket.socket, source: str, service: str, argument: str, target: str) -> None:
            await run_on_host(self.settings, runner, stream, source, service, argument, target)

        listener = CallListener(self.settings)
        broker = Broker(
            self.settings, listener, PolicyFiles(self.settings.policy_dir), lambda: self._info,
            SimpleNamespace(is_running=self.rigs.__contains__, start=refuse),
            SimpleNamespace(create=disposable, end=nothing), on_host,
        )  # fmt: skip
        for name in self.rigs:
            await listener.open(name)
        self._open.set()
        await self._stop.wait()
        await listener.close_all()
        await broker.close()

    def open(self) -> None:
        self._thread.start()
        self._open.wait(20)
        for one in self.rigs.values():
            one.start_link()
            one.start_agent()
            assert one.call("no.Such")[0] == 127  # answers once link and agent have met

    def close(self) -> None:
        for one in self.rigs.values():
            one.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def agent_socket(self, name: str) -> Path:
        """Where programs of a qube ask for calls."""
        return self.rigs[name].guest_run / "qrexec-agent.sock"

    def environment(self, name: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(SOURCE), "QREXEC_AGENT_SOCKET": str(self.agent_socket(name))}

    def start(self, name: str, *argv: str, **options: object) -> subprocess.Popen[bytes]:
        """A guest's tool."""
        words = [sys.executable, "-m", "casemate.agent.entry", *argv]
        return subprocess.Popen(words, env=self.environment(name), **options)  # type: ignore[call-overload,no-any-return]

    def tool(self, name: str, *argv: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
        """Status, stdout and stderr of a guest's tool."""
        pipe = subprocess.PIPE
        with self.start(name, *argv, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            out, err = process.communicate(data, timeout=60)
            return process.returncode, out, err

    def call(self, source: str, target: str, service: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
        """One call from qube to qube."""
        return self.tool(source, "qrexec-client-vm", target, service, data=data)


@contextmanager
def qubes(directory: Path, *names: str) -> Iterator[Qubes]:
    """Qubes that run; NAMES where none are named."""
    with ExitStack() as stack:
        made = Qubes(directory, names or NAMES)
        stack.callback(made.close)
        made.open()
        yield made
