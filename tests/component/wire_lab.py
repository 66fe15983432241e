"""A wire room without machines, in a namespace of its own: taps, real rules, and this process at the other end of the
taps in QEMU's place. Run as a program by tests; each line of its standard input is a request, JSON, answered by a line.

``{"plan": {...}}`` loads a plan, ``{"send": tap, "frames": [hex, ...]}`` answers with the frames that came out, by tap,
and ``{"counters": 1}`` with the packets that each counter has counted.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from casemate.host.room.links import Tap
from casemate.host.room.namespaces import make_silent
from casemate.host.room.nft import NftError
from casemate.host.room.server import Wires
from casemate.network import guard, parts
from casemate.network.plan import Lan, Plan, Served, Wire
from casemate.streams.ready import readable

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
NOTICED_SECONDS = 3.0
"""The kernel takes notice of carriers once a second at least."""
QUIET_SECONDS = 0.05
"""A frame comes out of the other tap in the system call that sent it, so a moment of quiet is enough."""


class Lab:
    """The room, and the descriptors of its taps."""

    def __init__(self) -> None:
        make_silent()
        self.wires = Wires()
        self.loaded: dict[str, parts.Part] | None = None
        self.taps: dict[str, int] = {}

    def load(self, told: dict[str, Any]) -> None:
        """Make the room what a plan says, as the daemon would."""
        plan = Plan(
            tuple(_wire(one) for one in told["wires"]),
            tuple(Served(**one) for one in told["served"]),
        )
        after = guard.parts(plan)
        taps = [*plan.taps({}), *(tap for tap in map(_uplink, plan.wires) if tap is not None)]
        links = [part.device for part in after.values()]
        if self.loaded is None:
            commands = parts.everything(after, parts.host_addresses(told["hosts"], told["hosts6"]))
        else:
            commands = parts.changes(self.loaded, after)
        gone = [tap for tap in self.wires.names() if tap not in links]
        self.wires.apply(taps, commands, links, gone)
        self.loaded = after
        for tap in gone:
            if tap in self.taps:
                os.close(self.taps.pop(tap))
        for tap in links:
            if tap not in self.taps:
                self.taps[tap] = _open(tap)
        self._read(0)

    def refused(self, tap: str) -> list[bool]:
        """Have rules for a new tap refused; whether its link was up at any message of the kernel about it."""
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        events.bind((0, 1))  # RTMGRP_LINK
        try:
            self.wires.apply([Tap(tap)], [{"delete": {"table": {"family": "netdev", "name": "none"}}}], [tap], [])
        except NftError:
            pass
        found = []
        events.settimeout(0.2)
        try:
            while True:
                _length, kind = struct.unpack_from("=IH", data := events.recv(65536))
                if kind == 16 and tap.encode() in data:  # RTM_NEWLINK
                    found.append(bool(struct.unpack_from("=I", data, 16 + 8)[0] & 1))  # ifi_flags: IFF_UP
        except TimeoutError:
            return found

    def remove(self, names: list[str]) -> list[str]:
        """Have interfaces removed that the plan does not know; those that are left."""
        self.wires.apply([], [], [], names)
        for name in set(names) & self.taps.keys():
            os.close(self.taps.pop(name))
        return sorted(self.wires.names())

    def vanish(self, interface: str, chain: str, *parts_of_it: str) -> None:
        """Have an interface vanish, and parts loaded anew with the next plan, as the daemon does. ``chain``: the one
        that goes with it, as in older kernels; empty for none."""
        assert self.loaded is not None
        self.remove([interface])
        if chain:
            ident = {"chain": {"family": "netdev", "table": parts.TABLE, "name": chain}}
            self.wires.nft.load([{"flush": ident}, {"delete": ident}])
        for name in parts_of_it:
            part = self.loaded[name]
            self.loaded[name] = replace(part, chains=dict.fromkeys(part.chains, ()))

    def send(self, tap: str, frames: list[str]) -> dict[str, list[str]]:
        """Send frames as the guest behind a tap would; what came out of which tap."""
        for frame in frames:
            os.write(self.taps[tap], bytes.fromhex(frame))
        return self._read(QUIET_SECONDS)

    def _read(self, quiet: float) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        names = {fd: name for name, fd in self.taps.items()}
        while ready := readable(list(names), quiet):
            for fd in ready:
                found.setdefault(names[fd], []).append(os.read(fd, 65536).hex())
        return found


def _wire(told: dict[str, Any]) -> Wire:
    lan = told.get("lan")
    return Wire(**{**told, "rules": tuple(told["rules"]), "lan": None if lan is None else Lan(**lan)})


def _uplink(wire: Wire) -> Any:
    """A tap in place of what pasta makes, or of a card: what comes out of it can be read."""
    return Tap(wire.exit) if wire.uplink and wire.exit else None


def _open(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    # Somebody is at its other end now; frames come out when the kernel has taken notice of that.
    end = time.monotonic() + NOTICED_SECONDS
    while time.monotonic() < end:
        told = subprocess.run(["ip", "-o", "link", "show", "dev", name], capture_output=True, text=True).stdout
        if " qdisc noop " not in told:
            break
        time.sleep(0.01)
    return fd


def main() -> None:
    """Serve until the end of the input."""
    lab = Lab()
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        begin = time.monotonic()
        try:
            if "plan" in request:
                lab.load(request["plan"])
            elif "send" in request:
                answer = lab.send(request["send"], request["frames"])
            elif "anew" in request:
                lab.loaded = None
            elif "counters" in request:
                answer = {name: packets for name, (packets, _bytes) in lab.wires.counters().items() if packets}
            elif "refused" in request:
                answer = lab.refused(request["refused"]["tap"])
            elif "unasked" in request:
                answer = lab.remove(request["unasked"])
            elif "vanish" in request:
                lab.vanish(*request["vanish"])
            elif "silent" in request:
                answer = sorted(lab.wires.names())
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"answer": answer, "seconds": time.monotonic() - begin}), flush=True)


if __name__ == "__main__":
    main()
