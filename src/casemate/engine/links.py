"""Starts, finds again, asks and ends the link processes, one per running qube."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casemate.host.files import replace_file
from casemate.host.process import PACKAGE_PATH, Runner
from casemate.settings import Settings
from casemate.streams.half_frame import configured
from casemate.wire.errors import DisconnectedError, QubeError
from casemate.wire.link import CONTROL, control_message, parse_object

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<II")


@dataclass(frozen=True)
class LinkSpec:
    """All that a link needs to know of its qube; given on its standard input as JSON."""

    name: str
    directory: Path
    default_user: str
    database: dict[str, str] = field(default_factory=dict)
    uid: int | None = None
    gid: int | None = None

    def to_json(self) -> bytes:
        """The form that ``casemate.link`` reads."""
        return json.dumps(
            {
                "name": self.name,
                "directory": str(self.directory),
                "default_user": self.default_user,
                "database": self.database,
                "uid": self.uid,
                "gid": self.gid,
                "half_frame_seconds": configured(os.environ),
            }
        ).encode()


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot: with the pid it names one process for ever (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


class Links:
    """Keeper of the links of all running qubes."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._runner = runner
        self._on_death: Callable[[str], None] = lambda name: None
        self._pidfds: dict[str, int] = {}

    def subscribe(self, on_death: Callable[[str], None]) -> None:
        """Call ``on_death(name)`` from now on when a link ends unasked. There is one subscriber, the lifecycle."""
        self._on_death = on_death

    def has(self, name: str) -> bool:
        """True while the qube's link is known to run."""
        return name in self._pidfds

    async def start(self, spec: LinkSpec) -> None:
        """Spawn the link; returns when its sockets listen. It outlives this process."""
        log_file = self._settings.qube_log("link", spec.name)
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(log_file, "ab") as output:
            if output.tell() > 1 << 20:
                output.truncate(0)
            child = await self._runner.spawn(
                [sys.executable, "-S", "-P", "-m", "casemate.link", spec.name],
                env={"PYTHONPATH": PACKAGE_PATH},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output.fileno(),
            )
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(spec.to_json())
            child.stdin.close()
            async with asyncio.timeout(20):
                line = await child.stdout.readline()
        except (TimeoutError, OSError):
            line = b""
        if line != b"listening\n":
            if child.returncode is None:
                child.kill()
            await child.wait()
            raise QubeError(f"the link of {spec.name} did not start: see {log_file}")
        self._record(spec.name, child.pid)

    def _record(self, name: str, pid: int) -> None:
        path = self._settings.qube_run(name).with_suffix(".link")
        replace_file(path, f"{pid} {_start_time(pid)}\n".encode(), mode=0o600)
        self._watch(name, os.pidfd_open(pid))

    def _watch(self, name: str, pidfd: int) -> None:
        self._pidfds[name] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, name, pidfd)

    def _ended(self, name: str, pidfd: int) -> None:
        self._forget(name)
        log.info("the link of %s has ended", name)
        self._on_death(name)

    def _forget(self, name: str) -> None:
        pidfd = self._pidfds.pop(name, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._settings.qube_run(name).with_suffix(".link").unlink(missing_ok=True)

    def adopt(self, name: str) -> bool:
        """Find the link that an earlier daemon started; False when there is none any more."""
        if name in self._pidfds:
            return True
        path = self._settings.qube_run(name).with_suffix(".link")
        try:
            pid_text, started = path.read_text().split()
            pidfd = os.pidfd_open(int(pid_text))
        except (OSError, ValueError):
            return False
        try:
            same = _start_time(int(pid_text)) == started
        except OSError:
            same = False
        if not same:
            os.close(pidfd)
            return False
        self._watch(name, pidfd)
        return True

    async def stop(self, name: str) -> None:
        """End the link; returns when it is gone. No-op when there is none."""
        if not self.adopt(name):
            return
        pidfd = self._pidfds[name]
        asyncio.get_running_loop().remove_reader(pidfd)
        gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, lambda: None if gone.done() else gone.set_result(None))
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            async with asyncio.timeout(10):
                await gone
        finally:
            self._forget(name)

    def release(self) -> None:
        """Stop watching; the links go on."""
        for pidfd in self._pidfds.values():
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds.clear()

    async def silence(self, name: str) -> str:
        """What is known of a running qube whose agent gives no sign of life; empty where it does, or ends."""
        try:
            told = await self.ask(name, 5.0, op="answers", within=1.0)
        except DisconnectedError:
            return ""
        return "" if told.get("answers") else str(told.get("why") or "its agent gives no sign of life")

    async def ask(self, name: str, timeout: float, **request: Any) -> dict[str, Any]:
        """Send one control request and return its answer. DisconnectedError when the link is gone or silent."""
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(self._settings.link_socket(name))
                try:
                    writer.write(control_message(request))
                    kind, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
                    if kind != CONTROL:
                        raise DisconnectedError(f"the link of {name} answered with type {kind:#x}")
                    return parse_object(await reader.readexactly(length), "answer of the link")
                finally:
                    writer.close()
        except TimeoutError:
            raise DisconnectedError(f"the link of {name} did not answer within {timeout:g} s") from None
        except (OSError, asyncio.IncompleteReadError) as error:
            raise DisconnectedError(f"the link of {name} is gone: {error}") from None
