"""Ends and removes everything of one state directory: daemon, links, machines, files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from casemate.settings import Settings


def _wait_gone(pids: set[int], seconds: float) -> set[int]:
    """The processes that still are there after at most so long; zombies count as gone."""
    deadline = time.monotonic() + seconds
    while pids and time.monotonic() < deadline:
        pids = {pid for pid in pids if alive(pid)}
        if pids:
            time.sleep(0.02)
    return pids


def alive(pid: int) -> bool:
    """True while the process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _end(pids: set[int], first: signal.Signals) -> None:
    for number in (first, signal.SIGKILL):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        pids = _wait_gone(pids, 10)


def _recorded(path: Path) -> set[int]:
    try:
        return {int(path.read_text().split()[0])}
    except (OSError, ValueError, IndexError):
        return set()


def machines_of(settings: Settings) -> dict[int, str]:
    """Processes of QEMU that run this state's qubes, with the qubes' names."""
    pattern = re.compile(rb"guest=" + re.escape(settings.prefix.encode()) + rb"([A-Za-z0-9_-]+)")
    state = bytes(settings.state) + b"/"
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        match = pattern.search(line)
        if match and state in line:
            found[int(path.parent.name)] = match[1].decode()
    return found


def clean_state(settings: Settings) -> None:
    """End what runs, then remove the state and run-time directories. The cache of built templates stays."""
    end_processes(settings)
    for directory in (settings.run, settings.state):
        shutil.rmtree(directory, ignore_errors=True)


def end_processes(settings: Settings) -> None:
    """End the daemon, all machines, and what serves them; files stay."""
    _end({pid for pid in _recorded(settings.run / "casemated.pid") if _is_ours(pid)}, signal.SIGTERM)
    _end(set(machines_of(settings)), signal.SIGTERM)
    # The embedded driver's definitions go with the state; another libvirt has to be told.
    forgotten = ["machines"] if settings.hypervisor != "embed" else []
    forgotten += ["devices", "cards"] if os.geteuid() == 0 else []
    for what in forgotten if settings.store_file.exists() else []:
        environment = {**os.environ, **settings.environment()}
        subprocess.run([sys.executable, "-m", "casemate.host.clean_up", what], env=environment, check=False)
    links: set[int] = set()
    if (settings.run / "qubes").is_dir():
        for path in (settings.run / "qubes").glob("*.link"):
            links |= {pid for pid in _recorded(path) if _is_ours(pid)}
        for path in (settings.run / "qubes").glob("*.uplink"):
            links |= {pid for pid in _recorded(path) if _is_ours(pid, b"pasta")}
    _end(links, signal.SIGKILL)
    short = Path(f"/tmp/casemate-{os.geteuid()}")  # noqa: S108  (host/libvirt_embed.py makes links there)
    if short.is_dir():
        for link in short.iterdir():
            if link.is_symlink() and link.readlink() == settings.state / "libvirt":
                link.unlink()
        if not any(short.iterdir()):
            short.rmdir()


def _is_ours(pid: int, word: bytes = b"casemate") -> bool:
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
