"""A link and an agent joined by a unix socket instead of a machine: the real programs, no hypervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import casemate
from casemate.wire.call_data import CallerSide
from casemate.wire.qrexec import DATA_STDERR, DATA_STDIN, DATA_STDOUT, EXEC_CMDLINE, HEADER, exec_message

SOURCE = Path(casemate.__file__).parent.parent

AGENT = """
import os, signal, socket, sys
from casemate.agent.main import Agent
from casemate.streams.loop import Loop
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
os.geteuid = lambda: 1000  # serve as who we are: this is not a machine of its own
loop = Loop()
fd = int(sys.argv[1])
os.set_blocking(fd, False)
os.set_inheritable(fd, False)  # as a port is opened
Agent(loop, fd, sys.argv[2])
loop.run()
"""


class Rig:
    """Directory of a qube's sockets; ``start_agent`` and ``start_link`` make the two ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guest_run = directory / "guest"
        self.link_settings: dict[str, object] = {}
        """What a link that is started from now on is told besides the rest."""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.services = directory / "rpc"
        self.services.mkdir()
        self._port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._port.bind(str(directory / "channel.sock"))
        self._port.listen(1)

    def service(self, name: str, script: str) -> None:
        """A service in the guest."""
        path = self.services / name
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)

    def spawn(self, argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        """A process that the rig ends."""
        environment = {
            "PYTHONPATH": str(SOURCE),
            "PATH": os.environ["PATH"],
            "QREXEC_SERVICE_PATH": str(self.services),
            "QUBES_RPC_CONFIG_PATH": str(self.directory / "config"),
        }
        process = subprocess.Popen(argv, env=environment, **options)  # type: ignore[call-overload]
        self.processes.append(process)
        return process  # type: ignore[no-any-return]

    def start_link(self, **database: str) -> subprocess.Popen[bytes]:
        """The link, serving; its end of the channel waits to be accepted."""
        link = self.spawn(
            [sys.executable, "-S", "-m", "casemate.link", "rig"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self.directory / "link.log", "ab"),
        )
        assert link.stdin is not None and link.stdout is not None
        content = {"/name": "rig", "/default-user": "user", **database}
        link.stdin.write(
            json.dumps(
                {
                    "name": "rig", "directory": str(self.directory), "default_user": "user",
                    "database": content, "uid": None, "gid": None, **self.link_settings,
                }
            ).encode()
        )  # fmt: skip
        link.stdin.close()
        assert link.stdout.readline() == b"listening\n"
        return link

    def accept(self) -> socket.socket:
        """The guest's end of the channel."""
        self._port.settimeout(30)
        try:
            return self._port.accept()[0]
        except TimeoutError:
            raise AssertionError((self.directory / "link.log").read_text()[-2000:]) from None

    def start_agent(self) -> subprocess.Popen[bytes]:
        """An agent on the next connection of the link."""
        with self.accept() as guest:
            fd = guest.fileno()
            return self.spawn(
                [sys.executable, "-c", AGENT, str(fd), str(self.guest_run)],
                pass_fds=(fd,),
                stderr=open(self.directory / "agent.log", "ab"),
            )

    def caller(self) -> socket.socket:
        """A connection to the link."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.directory / "link.sock"))
        sock.settimeout(20)
        return sock

    def call(
        self, service: str, stdin: bytes = b"", source: str = "dom0", kind: int = EXEC_CMDLINE
    ) -> tuple[int, bytes, bytes]:
        """One call as a host program makes it: (status, stdout, stderr)."""
        return asyncio.run(self.call_async(service, stdin, source, kind))

    async def call_async(
        self, service: str, stdin: bytes = b"", source: str = "dom0", kind: int = EXEC_CMDLINE
    ) -> tuple[int, bytes, bytes]:
        """The same, for many at once."""
        reader, writer = await asyncio.open_unix_connection(str(self.directory / "link.sock"))
        side = CallerSide()
        out: dict[int, list[bytes]] = {DATA_STDOUT: [], DATA_STDERR: []}
        with contextlib.suppress(ConnectionError):
            writer.write(exec_message(f"DEFAULT:QUBESRPC {service} {source}", kind))

        async def feed() -> None:
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(stdin), 65528):
                    piece = stdin[at : at + 65528]
                    writer.write(HEADER.pack(DATA_STDIN, len(piece)) + piece)
                    await writer.drain()
                writer.write(HEADER.pack(DATA_STDIN, 0))
                await writer.drain()

        feeding = asyncio.create_task(feed())
        try:
            async with asyncio.timeout(60):
                while side.exit_code is None:
                    try:
                        data = await reader.read(65536)
                    except ConnectionError:
                        break
                    if not data:
                        break
                    for what, view in side.feed(data):
                        if view:
                            out[what].append(bytes(view))
        finally:
            feeding.cancel()
            writer.transport.abort()  # at once: what a service no longer reads would be waited for
        return side.status(), b"".join(out[DATA_STDOUT]), b"".join(out[DATA_STDERR])

    def close(self) -> None:
        """End everything."""
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._port.close()


@contextlib.contextmanager
def rig(directory: Path) -> Iterator[Rig]:
    """A rig with both ends running."""
    made = Rig(directory)
    try:
        made.start_link()
        made.start_agent()
        yield made
    finally:
        made.close()
