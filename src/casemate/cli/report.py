"""Tells whoever watches calls (``casemate trace``) of calls that a tool of this host makes; costs nothing otherwise."""

from __future__ import annotations

import os
import socket
import time

from casemate.wire.errors import CasemateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.settings import Settings
    from casemate.wire.qrexec import Command

_count = 0


class Report:
    """One call. Where nobody watches there is no socket to send to, and every step is one failing look-up."""

    def __init__(self, settings: Settings, command: Command, target: str) -> None:
        global _count
        _count += 1
        self._begun = time.monotonic()
        self._path = f"{os.fspath(settings.run)}/reports.sock"
        self._body = {
            "id": f"t{os.getpid()}.{_count}", "source": command.source, "service": command.service,
            "argument": command.argument or "", "target": target,
        }  # fmt: skip
        self.step("asked")

    def step(self, phase: str, **facts: str | int | None) -> None:
        """Something has happened: ``asked``, ``started``, ``connected``, ``refused``, ``ended``."""
        if not os.path.exists(self._path):  # noqa: PTH110
            return
        import json

        body = {**self._body, "phase": phase, "at": round(time.monotonic() - self._begun, 6), **facts}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(json.dumps(body).encode(), self._path)
            except OSError:
                pass  # the watcher has gone, or does not keep up

    def refused(self, cause: str, error: CasemateError) -> None:
        """The call did not come about."""
        self.step("refused", cause=cause, why=str(error)[:500])
        self.step("ended")
