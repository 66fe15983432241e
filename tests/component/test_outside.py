"""How a net qube with a card gets its address: the agent's own program, a veth pair, a server of DHCP behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import casemate
from casemate.model.uplinks import static_of
from tests.builders import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces that are joined need root")

REPO = Path(casemate.__file__).parents[2]
SERVER = Path(__file__).with_name("dhcp_server.py")
MAC = "02:00:5e:00:00:03"
OWN, LENT = "192.0.2.1", "192.0.2.77"


class Wire:
    """A cable of software with a namespace at each end: the guest's and the network's."""

    def __init__(self, directory: Path) -> None:
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text("")
        self._processes: list[subprocess.Popen[str]] = []
        self.guest, self.network = self._namespace(), self._namespace()
        self.inside(self.network, f"ip link add srv type veth peer name eth0 address {MAC} netns {self.guest}")
        self.inside(self.network, f"ip addr add {OWN}/24 dev srv; ip link set srv up; ip link set lo up")
        self.inside(self.guest, "ip link set eth0 up")

    def _namespace(self) -> int:
        process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], text=True)
        self._processes.append(process)
        own = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != own)
        return process.pid

    def inside(self, pid: int, command: str) -> str:
        return subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-c", command], check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def serve(self, seconds: int = 3600, how: str = "") -> subprocess.Popen[str]:
        words = [sys.executable, str(SERVER), "srv", OWN, LENT, str(seconds), how]
        process = subprocess.Popen(
            ["nsenter", f"--net=/proc/{self.network}/ns/net", *words], stdout=subprocess.PIPE, text=True
        )
        self._processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == "listening\n"
        return process

    def run(self, what: str, program: str = "") -> subprocess.Popen[str]:
        """The agent's program, as the agent starts it; ``program`` runs before it in its process."""
        code = f"{program}\nfrom casemate.agent.outside import main\nmain(['outside', {MAC!r}, {what!r}])"
        # The interfaces in /sys are those of the namespace in which it was mounted.
        script = f'mount -t sysfs none /sys && mount --bind {self.resolv_conf} /etc/resolv.conf && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", code]
        process = subprocess.Popen(["nsenter", f"--net=/proc/{self.guest}/ns/net", *words], cwd=REPO, text=True)
        self._processes.append(process)
        return process

    def has(self, address: str) -> bool:
        return f"inet {address}/24" in self.inside(self.guest, "ip -4 addr show dev eth0")

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_an_address_a_way_and_name_servers_come_by_dhcp(cable: Wire) -> None:
    cable.serve()
    cable.run("dhcp")
    wait_for(lambda: cable.has(LENT), 10)
    wait_for(lambda: f"default via {OWN}" in cable.inside(cable.guest, "ip route"), 5)
    wait_for(lambda: cable.resolv_conf.read_text() == f"nameserver {OWN}\n", 5)


def test_answers_that_are_none_are_passed_over(cable: Wire) -> None:
    cable.serve(how="hostile")
    cable.run("dhcp")
    wait_for(lambda: cable.has(LENT), 15)
    assert "10.137" not in cable.inside(cable.guest, "ip -4 addr")


def test_a_server_that_comes_late_is_heard(cable: Wire) -> None:
    cable.run("dhcp")
    wait_for(lambda: len(cable.inside(cable.guest, "cat /proc/net/packet").splitlines()) == 2, 10)  # it asks
    cable.serve()
    wait_for(lambda: cable.has(LENT), 30)


FASTER = "import casemate.wire.dhcp as d, casemate.agent.outside as o; d.LEAST_SECONDS = 4; o._LEAST_WAIT = 1.0"


def test_an_address_is_prolonged_and_stays(cable: Wire) -> None:
    server = cable.serve(seconds=4)
    cable.run("dhcp", FASTER)
    wait_for(lambda: cable.has(LENT), 10)
    assert server.stdout is not None
    lines = [server.stdout.readline().strip() for _line in range(4)]
    assert lines == ["discover offer new", "request ack new", "request ack prolong", "request ack prolong"]
    assert cable.has(LENT)


def test_an_address_that_is_taken_back_is_given_up(cable: Wire) -> None:
    cable.serve(seconds=4, how="nak")
    cable.run("dhcp", FASTER)
    wait_for(lambda: cable.has(LENT), 10)
    wait_for(lambda: cable.has("192.0.2.78") and not cable.has(LENT), 15)


def test_an_address_whose_time_is_over_is_given_up(cable: Wire) -> None:
    server = cable.serve(seconds=4)
    cable.run("dhcp", FASTER)
    wait_for(lambda: cable.has(LENT), 10)
    server.kill()
    wait_for(lambda: not cable.has(LENT), 15)


def test_a_program_that_was_killed_leaves_no_second_address(cable: Wire) -> None:
    cable.serve()
    first = cable.run("dhcp")
    wait_for(lambda: cable.has(LENT), 10)
    first.kill()
    first.wait()
    given = static_of(
        {"net.uplink-ip": "192.0.2.9/24", "net.uplink-gateway": OWN, "net.uplink-dns": f"{OWN} 192.0.2.2"}
    )
    cable.run(str(given))
    wait_for(lambda: cable.has("192.0.2.9") and not cable.has(LENT), 10)
    assert f"default via {OWN}" in cable.inside(cable.guest, "ip route")
    wait_for(lambda: cable.resolv_conf.read_text() == f"nameserver {OWN}\nnameserver 192.0.2.2\n", 5)
