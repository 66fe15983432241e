"""Uplinks: pasta, which gives a net qube this host's way to the network as an ordinary user, without privileges.

pasta makes the interface ``xN`` in the wire room and moves what the net qube sends there into sockets of this host, so
the net qube appears as a program of this host. Its other end, the frames, is judged by the guard of the net qube's tap.
Nothing outside can open a connection inward: no port is forwarded.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from casemate.host import qemu_access
from casemate.host.lasting_process import LastingProcess
from casemate.host.process import Runner
from casemate.host.room.namespaces import Room
from casemate.network.plan import SERVED_MAC, uplink_tap
from casemate.settings import Settings
from casemate.wire.errors import CasemateError, printable
from casemate.wire.nft import DNS

log = logging.getLogger(__name__)

GATEWAY = "10.139.255.254"
"""What a net qube with an uplink has as its gateway. pasta takes all frames, whatever address this is."""
GATEWAY6 = "fd09:24ef:4179::a8b:fffe"
"""The same for IPv6."""
_TUN = Path("/dev/net/tun")
_MTU = 1500
_START_SECONDS = 10.0
_LOOK_SECONDS = 0.02


class UplinkError(CasemateError):
    """pasta did not start."""


class Uplinks:
    """The pasta processes, one for each net qube with an uplink. They outlive the daemon, as QEMU does."""

    def __init__(self, settings: Settings, runner: Runner, user: int | None) -> None:
        """``user`` runs pasta where we are root: the owner of the room."""
        self._settings = settings
        self._runner = runner
        self._user = user
        self._running: dict[str, LastingProcess] = {}
        self.on_end: Callable[[str], None] = lambda name: None
        """Called with the name of a qube whose pasta ended unasked."""

    def running(self) -> frozenset[str]:
        """The qubes whose uplink is there."""
        return frozenset(self._running)

    def _record(self, name: str) -> Path:
        return self._settings.run / "qubes" / f"{name}.uplink"

    def adopt(self, name: str) -> bool:
        """Find the pasta that an earlier daemon started for the qube."""
        if name not in self._running:
            found = LastingProcess.find(self._record(name), lambda: self._ended(name))
            if found is None:
                return False
            self._running[name] = found
        return True

    def _ended(self, name: str) -> None:
        self._running.pop(name, None)
        log.warning("the uplink of %s has ended", name)
        self.on_end(name)

    async def start(
        self, name: str, qid: int, ip: str, ip6: str | None, room: Room, there: Callable[[], Awaitable[bool]]
    ) -> None:
        """Give a qube its uplink: its interface is there, down, when this returns.

        ``ip`` and ``ip6`` are the qube's addresses; without ``ip6`` the uplink carries IPv4 alone. ``there`` tells
        whether the interface is there. UplinkError when pasta ends before that, or hangs.
        """
        if self.adopt(name):
            return
        log_file = self._settings.qube_log("uplink", name)
        # The namespaces are its standard input and output: from 2024 on pasta closes what else it inherits, at once.
        # They have no name that could be taken away, so it need not look whether theirs is still there.
        argv = [
            "pasta", "--foreground", "--quiet", "--ns-ifname", uplink_tap(qid),
            "--userns", "/proc/self/fd/0", "--netns", "/proc/self/fd/1", "--no-netns-quit",
            "--address", ip, "--netmask", "16", "--gateway", GATEWAY, "--mac-addr", SERVED_MAC, "--mtu", str(_MTU),
            # No way in, and none to this host's loopback by the gateway's address.
            "--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none",
            "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--dns-forward", DNS[0],
        ]  # fmt: skip
        # Where this host has no way to send IPv6, pasta carries IPv4 alone by itself.
        argv += ["--ipv4-only"] if ip6 is None else ["--address", ip6, "--gateway", GATEWAY6]
        if self._user is None and not os.access(_TUN, os.R_OK | os.W_OK):
            raise UplinkError(f"{_TUN} is closed to this user; on Debian udev opens it for all (chmod 666 {_TUN})")
        # On most hosts /dev/net/tun is everybody's. Else pasta's user is let in while pasta starts: it opens it once.
        let_in = self._user is not None and qemu_access.allow_user(_TUN, self._user)
        try:
            with open(log_file, "wb") as output:
                child = await self._runner.spawn(
                    argv, stdin=room.user, stdout=room.net, stderr=output.fileno(), user=self._user
                )
            try:
                process = LastingProcess.of(self._record(name), child.pid, lambda: self._ended(name))
                self._running[name] = process
            except OSError:
                raise UplinkError(f"pasta ended at once: {_end_of(log_file)}") from None
            await self._wait_for(name, log_file, there)
        finally:
            if let_in and self._user is not None:
                qemu_access.forget_user(_TUN, self._user)

    async def _wait_for(self, name: str, log_file: Path, there: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await there():
                    if name not in self._running:
                        raise UplinkError(f"pasta ended: {_end_of(log_file)}")
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            await self.stop(name)
            raise UplinkError(f"pasta made no interface within {_START_SECONDS:g} s") from None

    async def stop(self, name: str) -> None:
        """End the uplink of a qube; its interface goes with it. Absent is fine."""
        if self.adopt(name):
            await self._running.pop(name).kill()
        self._record(name).unlink(missing_ok=True)

    def release(self) -> None:
        """Stop watching; they go on."""
        for process in self._running.values():
            process.release()
        self._running.clear()


def _end_of(path: Path) -> str:
    lines = [line for line in path.read_text("utf-8", "replace").splitlines() if "syslog" not in line]
    return printable(lines[-1], 200) if lines else "it said nothing"
