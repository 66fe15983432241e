"""What the tests' world is outside: a host with an address of its own, and an internet behind it, each in a namespace.

::

    tests' daemon, its pasta ─ namespace host: 192.0.2.2 ══ veth ══ 192.0.2.1 namespace internet: 198.51.100.0/24, DNS
         its wire room below it          2001:db8:1::2               2001:db8:1::1            2001:db8:2::/64

Nothing of it touches interfaces of the real host. Both namespaces end with their processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.builders import wait_for

HOST, GATEWAY = "192.0.2.2", "192.0.2.1"
SERVER, OTHER, RESOLVER, MIRROR = "198.51.100.7", "198.51.100.8", "198.51.100.53", "198.51.100.80"
HOST6, GATEWAY6, SERVER6, OTHER6 = "2001:db8:1::2", "2001:db8:1::1", "2001:db8:2::7", "2001:db8:2::8"
HERE = Path(__file__).parent


class Outside:
    """The two namespaces and their servers. ``zone`` changes what the name server answers."""

    def __init__(self, directory: Path) -> None:
        self._zone = directory / "zone.json"
        self._log = directory / "servers.log"
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {RESOLVER}\n")
        self.zone({})
        self._processes: list[subprocess.Popen[bytes]] = []
        self.internet = self._namespace()
        self.host = self._namespace()
        self._in(self.host, "ip", "link", "set", "lo", "up")
        self._in(self.host, "ip", "link", "add", "out0", "type", "veth", "peer", "name", "in0")
        self._in(self.host, "ip", "link", "set", "in0", "netns", str(self.internet))
        for pid, name, four, six in (
            (self.host, "out0", HOST, HOST6), (self.internet, "in0", GATEWAY, GATEWAY6)
        ):  # fmt: skip
            self._in(pid, "ip", "addr", "add", f"{four}/24", "dev", name)
            self._in(pid, "ip", "addr", "add", f"{six}/64", "dev", name, "nodad")
            self._in(pid, "ip", "link", "set", name, "up")
        self._in(self.internet, "ip", "link", "set", "lo", "up")
        for address in (SERVER, OTHER, RESOLVER, MIRROR):
            self._in(self.internet, "ip", "addr", "add", f"{address}/32", "dev", "lo")
        for address in (SERVER6, OTHER6):
            self._in(self.internet, "ip", "addr", "add", f"{address}/128", "dev", "lo", "nodad")
        self._in(self.host, "ip", "route", "add", "default", "via", GATEWAY)
        self._in(self.host, "ip", "route", "add", "default", "via", GATEWAY6)
        # pasta answers pings by a kind of socket that the system lets nobody use by default.
        self._in(self.host, "sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range")
        self.mirror = directory / "mirror"
        self.mirror.mkdir()
        for address in (SERVER, OTHER, SERVER6, OTHER6):
            ports = (f"tcp:{address}:{port}" for port in (80, 443, 25))
            self._serve(self.internet, *ports, f"udp:{address}:7")
        self._serve(self.internet, f"dns:{RESOLVER}:{self._zone}", f"http:{MIRROR}:{self.mirror}")
        self._serve(self.host, "tcp:80", "tcp:22", f"udp:{HOST}:7", f"tcp:{HOST6}:80", f"udp:{HOST6}:7")

    def _namespace(self) -> int:
        process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._processes.append(process)
        own = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != own)
        return process.pid

    def _in(self, pid: int, *argv: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", *argv], check=True)

    def _serve(self, pid: int, *what: str) -> None:
        with open(self._log, "ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, str(HERE / "servers.py"), *what],
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"listening\n", self._log.read_text()

    def zone(self, names: dict[str, Any]) -> None:
        """What the name server answers from now on: by name a list of addresses, or ``{"cname": …}``; ``ttl`` and
        ``extra`` records may stand beside (see servers.py)."""
        self._zone.write_text(json.dumps(names))

    def command(self) -> list[str]:
        """The beginning of a command that runs on the host of this world."""
        script = f'mount --bind {self.resolv_conf} /etc/resolv.conf && exec "$@"'
        return ["nsenter", f"--net=/proc/{self.host}/ns/net", "unshare", "--mount", "sh", "-c", script, "sh"]

    def close(self) -> None:
        """End everything."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
