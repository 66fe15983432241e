"""casemated: opens the store and the hypervisor, finds again what runs, serves the Admin API until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path

from casemate.daemon import activation
from casemate.daemon.wiring import Daemon
from casemate.host.orphans import become_subreaper
from casemate.settings import Settings, load
from casemate.wire.errors import CasemateError, ValueInvalidError

log = logging.getLogger("casemated")


class _OneLine(logging.Formatter):
    """Each record on one line of printable ASCII, but for the traceback of a fault of ours."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if " " <= c <= "~" or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _prepare(settings: Settings) -> None:
    """Make the directories. Qubes pass through some to what is theirs; nobody but us may list any."""
    modes = {
        settings.state: 0o711,
        settings.run: 0o711,
        settings.run / "qubes": 0o711,
        settings.state / "pools": 0o711,
        settings.state / "libvirt": 0o711,
        settings.state / "kernels": 0o711,
        settings.policy_dir: 0o700,
        settings.policy_run_dir: 0o700,
        settings.run / "log": 0o700,
    }
    for directory, mode in modes.items():
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        directory.chmod(mode)


def _check_reachable(settings: Settings) -> None:
    """As root each qube has a user of its own, which must be able to pass through to what is the qube's."""
    if os.geteuid() != 0:
        return
    for directory in (settings.state, settings.run):
        for parent in directory.parents:
            if not parent.stat().st_mode & 0o001:
                raise ValueInvalidError(
                    f"Qubes, which run as users of their own, cannot reach {directory}: {parent} does not let others "
                    f"pass. Choose another directory (CASEMATE_STATE, CASEMATE_RUN), or chmod o+x {parent}"
                )


def _log_to(settings: Settings, foreground: bool) -> None:
    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler()
    else:
        handler = RotatingFileHandler(settings.run / "log" / "casemated.log", maxBytes=1 << 20, backupCount=2)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _only_one(settings: Settings) -> int | None:
    """Take the lock that one daemon per state holds while it lives; None when another has it."""
    fd = os.open(settings.run / "casemated.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    if not _claim_state(settings):
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def _claim_state(settings: Settings) -> bool:
    """Hold the state for this run-time directory while the daemon lives (the descriptor stays open until then).

    The lock beside the sockets does not see a daemon of the same state whose sockets are elsewhere (CASEMATE_RUN):
    ValueInvalidError for such a one. False when a daemon of this very directory has it: one that is just ending gives
    up the two locks one after the other.
    """
    fd = os.open(settings.state / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        elsewhere = os.read(fd, 4096).decode("utf-8", "replace").strip()
        os.close(fd)
        if elsewhere == str(settings.run):
            return False
        raise ValueInvalidError(
            f"Another casemated serves {settings.state}, with its sockets in {elsewhere or 'another directory'}: "
            f"set CASEMATE_RUN={elsewhere}, or end it first"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{settings.run}\n".encode())
    return True


async def _serve(settings: Settings, foreground: bool, given: Mapping[Path, socket.socket]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Daemon(settings, given):
        log.info("serving %s", settings.api_socket)
        if not foreground:
            os.dup2(1, 2)  # whoever started us has heard enough; what Python may still say goes to the log
        await stop.wait()
    log.info("stopped; qubes go on")


def main(argv: list[str] | None = None) -> int:
    """Run the daemon; 0 after an orderly stop, 3 when another daemon serves this state already."""
    parser = argparse.ArgumentParser(prog="casemated", description="Serve the Admin API and run qubes.")
    parser.add_argument("--foreground", action="store_true", help="log to standard error")
    options = parser.parse_args(argv)
    try:
        given = activation.inherited(os.environ)
        settings = load()
        # Modes are ours to set, not those of whoever starts the daemon: under 077 qubes could not reach what is theirs
        # (libvirt's directories too), under 000 anybody could write.
        os.umask(0o022)
        _prepare(settings)
        _check_reachable(settings)
        lock = _only_one(settings)
        if lock is None:
            return 3
        _log_to(settings, options.foreground)
        become_subreaper()
        asyncio.run(_serve(settings, options.foreground, given))
    except CasemateError as error:
        return _failed(str(error), error.exit_status)
    except OSError as error:
        # A full disk, most of all: the log cannot tell then.
        return _failed(f"{error.filename or load().state}: {error.strerror or error}", 1, exc_info=True)
    return 0


def _failed(why: str, status: int, exc_info: bool = False) -> int:
    """Tell the log, once there is one, and whoever waits for us to serve (client/transport.py)."""
    if logging.root.handlers:
        log.error("%s", why, exc_info=exc_info)
    print(f"casemated: {why}", file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
