"""One network of qubes for all tests here, declared once; the tests' internet is outside of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders import short_directory
from tests.live.network.outside import SERVER, Outside
from tests.live.world import World

PROBE = Path(__file__).with_name("probe.py").read_text()
PORT = 7000
LISTEN = f"""
import socket, threading
for family in (socket.AF_INET, socket.AF_INET6):
    try:
        u = socket.socket(family, socket.SOCK_DGRAM)
        t = socket.socket(family, socket.SOCK_STREAM)
        for s in (u, t):
            if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("", {PORT}))
    except OSError:
        continue
    t.listen(8)
    def udp(u=u):
        while True: u.sendto(b"hello", u.recvfrom(100)[1])
    def tcp(t=t):
        while True:
            c = t.accept()[0]; c.sendall(b"hello"); c.close()
    for f in (udp, tcp): threading.Thread(target=f).start()
"""


@dataclass(frozen=True)
class Qube:
    """A qube of the declaration. ``rules`` are its firewall, in upstream's form; None: accept everything."""

    netvm: str | None
    provides: bool = False
    uplink: bool = False
    rules: tuple[str, ...] | None = None
    ipv6: bool = False


DECLARED = {
    "sys-net": Qube(None, provides=True, uplink=True, ipv6=True),
    "sys-fw": Qube("sys-net", provides=True, ipv6=True),
    "open": Qube("sys-fw", ipv6=True),
    "web": Qube(
        "sys-fw", rules=(f"action=accept proto=tcp dst4={SERVER} dstports=80", "action=accept specialtarget=dns")
    ),
    "shut": Qube("sys-fw", rules=()),
    "off": Qube(None),
}


class Net(World):
    """A world whose daemon lives on the tests' own host, with the declared qubes."""

    def __init__(self, directory: Path, outside: Outside) -> None:
        super().__init__(directory)
        self.outside = outside

    def run(self, *argv: str, **options: object):  # type: ignore[no-untyped-def]
        # The first tool starts the daemon, which stays where the tool was.
        return super().run(*self.outside.command(), *argv, **options)  # type: ignore[arg-type]

    def make(self) -> None:
        """Make and start all declared qubes; each listens for whoever should not reach it."""
        self.run("casemate", "template", "build", timeout=1800)
        for name, qube in DECLARED.items():
            self.run(
                "qvm-create", "--label", "red", "--prop", f"netvm={qube.netvm or ''}",
                "--prop", f"provides_network={qube.provides}", "--prop", "memory=200", name,
            )  # fmt: skip
            if qube.uplink:
                self.run("qvm-features", name, "net.uplink", "pasta")
            if qube.ipv6:
                self.run("qvm-features", name, "ipv6", "1")
            if qube.rules is not None:
                self.set_rules(name, *qube.rules)
        for name in DECLARED:
            self.begin(name)

    def begin(self, name: str) -> None:
        """Start a qube, with its servers."""
        self.run("qvm-start", name)
        self.run("qvm-run", "-u", "root", "--pass-io", name, "cat > /run/listen.py", data=LISTEN.encode())
        self.inside(name, "setsid python3 /run/listen.py </dev/null >/dev/null 2>&1 &", user="root")

    def set_rules(self, name: str, *rules: str) -> None:
        """Replace the firewall of a qube."""
        data = "".join(f"{rule}\n" for rule in rules).encode()
        self.run("qubesd-query", "--fail", "-e" if not data else "dom0", *(["dom0"] if not data else []),
                 "admin.vm.firewall.Set", name, data=data)  # fmt: skip

    def reach(self, qube: str, *places: tuple[str, str, int]) -> list[bool]:
        """Whether a qube reaches places, each (protocol, host, port); all are tried at once."""
        named = [(str(number), *place) for number, place in enumerate(places)]
        script = f"{PROBE}\nmain({named!r})\n"
        done = self.run("qvm-run", "--pass-io", "-u", "root", qube, "python3 -", data=script.encode())
        found = json.loads(done.stdout)
        return [found[str(number)] for number in range(len(places))]

    def talk(self, qube: str, script: str) -> subprocess.Popen[bytes]:
        """A Python program in a qube, to talk with."""
        self.run("qvm-run", "--pass-io", qube, "cat > talk.py", data=script.encode())
        return subprocess.Popen(
            [*self.outside.command(), "qvm-run", "--pass-io", qube, "python3 -u talk.py"],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ip(self, name: str) -> str:
        """The address of a qube."""
        return str(self.run("qvm-prefs", name, "ip").stdout.decode().strip())


@pytest.fixture(scope="session")
def outside() -> Iterator[Outside]:
    """The tests' internet, and a host in it."""
    if os.geteuid() != 0:
        pytest.skip("namespaces beside the user's own need root")
    with short_directory("cmo") as directory:
        made = Outside(directory)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def net(outside: Outside) -> Iterator[Net]:
    """The declared qubes, running."""
    with short_directory("cmn") as directory:
        directory.chmod(0o711)
        made = Net(directory, outside)
        try:
            made.make()
            yield made
        finally:
            made.clean()
