"""Runs a service of this host for a qube: finds its program and starts a process that serves the call."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

from casemate.host.process import PACKAGE_PATH, Runner
from casemate.settings import Settings
from casemate.wire.errors import CallRefusedError
from casemate.wire.qrexec import target_words


def service_path(settings: Settings, service: str, argument: str) -> Path | None:
    """The program of a service of this host, the argument-specific one first; None when there is none.

    Programs of the administrator in ``STATE/qubes-rpc``; a file that others may write is not run.
    """
    directory = settings.state / "qubes-rpc"
    for name in (f"{service}+{argument}", service):
        path = directory / name
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode) and os.access(path, os.X_OK) and not status.st_mode & 0o022:
            return path
        raise CallRefusedError(f"{path} is not a program that only its owner may change", "no such service")
    return None


async def run_on_host(
    settings: Settings, runner: Runner, stream: socket.socket, source: str, service: str, argument: str, target: str
) -> None:
    """Serve one call on ``stream``, which stays the caller's to close. Returns when the program has been started."""
    path = service_path(settings, service, argument)
    if path is None:
        raise CallRefusedError(f"this host has no service {service}", "no such service")
    kind, name = target_words(target)
    environment = {
        "PYTHONPATH": PACKAGE_PATH,
        "LANG": "C.UTF-8",
        "QREXEC_REMOTE_DOMAIN": source,
        "QREXEC_SERVICE_FULL_NAME": f"{service}+{argument}",
        "QREXEC_SERVICE_ARGUMENT": argument,
        "QREXEC_REQUESTED_TARGET_TYPE": kind,
        "QREXEC_REQUESTED_TARGET" if kind == "name" else "QREXEC_REQUESTED_TARGET_KEYWORD": name,
    }
    argv = [sys.executable, "-S", "-P", "-m", "casemate.calls.host_service", str(stream.fileno()), str(path)]
    if argument:
        argv.append(argument)
    await runner.spawn(argv, env=environment, pass_fds=(stream.fileno(),))
