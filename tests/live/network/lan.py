"""A network beside the tests' internet, with a card of the tests' host in it: a router, DHCP, names, a server beyond.
It is a namespace that ends with its process.

::

    namespace host: lan0 ══ veth ══ port: 203.0.113.1 namespace lan, DHCP, DNS ── 198.18.0.7 (beyond)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.builders import wait_for
from tests.live.network.outside import Outside

CARD = "lan0"
ROUTER, LEASED, BEYOND = "203.0.113.1", "203.0.113.77", "198.18.0.7"
NAME = "beyond.example.org"
HERE = Path(__file__).parent
DHCP_SERVER = HERE.parents[1] / "component" / "dhcp_server.py"


class Lan:
    """The namespace, its cable to the tests' host, its servers."""

    def __init__(self, outside: Outside, directory: Path) -> None:
        self._host = outside.host
        self._zone = directory / "lan-zone.json"
        self._zone.write_text(json.dumps({NAME: [BEYOND]}))
        self._servers: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        own = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{self._holder.pid}/ns/net").readlink() != own)
        self.inside(f"ip link set lo up; ip addr add {BEYOND}/32 dev lo")
        self.plug()

    def inside(self, command: str, pid: int = 0) -> str:
        """Run a shell command in the network; with ``pid`` in that process's."""
        words = ["nsenter", f"--net=/proc/{pid or self._holder.pid}/ns/net", "sh", "-ec", command]
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout

    def on_host(self, command: str) -> str:
        """Run a shell command on the tests' host."""
        return self.inside(command, self._host)

    def plug(self) -> None:
        """Put the cable and its card in, with all servers."""
        self.on_host(f"ip link add {CARD} type veth peer name port netns {self._holder.pid}; ip link set {CARD} up")
        self.inside(f"ip link set port up; ip addr add {ROUTER}/24 dev port")
        self._serve(str(DHCP_SERVER), "port", ROUTER, LEASED, "3600")
        self._serve(str(HERE / "servers.py"), f"tcp:{BEYOND}:80", f"tcp:{BEYOND}:25", f"dns:{ROUTER}:{self._zone}")

    def pull(self) -> None:
        """Have the card vanish, as one that is pulled out."""
        self._end_servers()
        self.inside("ip link del port")

    def _serve(self, *argv: str) -> None:
        words = ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", sys.executable, *argv]
        # What it says afterwards is little: a line for each question.
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        self._servers.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"listening\n"

    def _end_servers(self) -> None:
        for process in self._servers:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._servers.clear()

    def close(self) -> None:
        """End everything."""
        self._end_servers()
        self._holder.kill()
        self._holder.wait()
