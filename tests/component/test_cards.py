"""Cards of a host in the wire room and back, whatever is killed meanwhile: cables of software in namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import casemate
from casemate.cli.clean import end_processes
from casemate.settings import Settings
from tests.builders import short_directory, wait_for
from tests.component.card_lab import STAGES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a card can be given by root alone")

REPO = Path(casemate.__file__).parents[2]
MAC = "02:00:5e:00:00:03"
CARD, SHARED = ("start", "net", "card:eth1", "x3", MAC), ("start", "net", "shared:eth1", "x3", MAC)


class Host:
    """A namespace that is a host with two cards: out0, its way to the network, and eth1. Beside it the wire room."""

    def __init__(self, run: Path) -> None:
        self.run_directory = run
        (run / "qubes").mkdir()
        self._processes: list[subprocess.Popen[str]] = []
        self.pid = self.namespace()
        self.switch = self.namespace()
        self.inside(
            "ip link set lo up; ip link add out0 type veth peer name out1; ip link set out0 up; ip link set out1 up;"
            "ip addr add 192.0.2.2/24 dev out0; ip route add default via 192.0.2.1;"
            f"ip link add eth1 type veth peer name port netns {self.switch}; ip link set eth1 up mtu 1400"
        )
        self.inside("ip link set port up", self.switch)
        self.new_room()
        self.lab = self.start_lab()

    def namespace(self) -> int:
        process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], text=True)
        self._processes.append(process)
        own = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != own)
        return process.pid

    def new_room(self) -> None:
        """The process of the wire room, in a room that nothing else is in."""
        self.room = self.namespace()

    def kill_room(self) -> None:
        process = self._processes.pop()
        assert process.pid == self.room
        process.kill()
        process.wait()

    def inside(self, command: str, pid: int | None = None) -> str:
        return subprocess.run(
            ["nsenter", f"--net=/proc/{pid or self.pid}/ns/net", "sh", "-ec", command],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    def start_lab(self, root: bool = True) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "tests.component.card_lab", str(self.run_directory), str(self.room)]
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=REPO, env={**os.environ, "LAB_ROOT": "1" if root else "0"},
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        assert self.lab.stdin is not None and self.lab.stdout is not None
        self.lab.stdin.write(json.dumps(request) + "\n")
        self.lab.stdin.flush()
        line = self.lab.stdout.readline()
        return json.loads(line)["answer"] if line else "killed"

    def do(self, *words: Any) -> Any:
        return self.ask(do=list(words))

    def refusal(self, uplink: str, name: str = "net") -> str:
        """Why a card cannot be had; nothing is left of the attempt."""
        before = self.names()
        answer = self.do("start", name, uplink, "x3", MAC)
        assert isinstance(answer, dict), answer
        assert self.names() == before
        return str(answer["error"])

    def names(self, pid: int | None = None) -> list[str]:
        found = json.loads(self.inside("ip -j link", pid))
        return sorted(link["ifname"] for link in found if link["ifname"] != "lo")

    def has_card(self) -> bool:
        """Whether eth1 is as it was: here, under its name, in use, with its settings; nothing of ours is left."""
        found = {link["ifname"]: link for link in json.loads(self.inside("ip -j link"))}
        left = [path.name for path in (self.run_directory / "qubes").iterdir()]
        card = found.get("eth1", {})
        return card.get("mtu") == 1400 and "UP" in card.get("flags", ()) and not left and not self.holders()

    def holders(self) -> list[int]:
        mark = f"CASEMATE_HOLDS={self.run_directory}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def end_lab(self) -> None:
        self.lab.kill()
        self.lab.wait()
        for pipe in (self.lab.stdin, self.lab.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def close(self) -> None:
        self.end_lab()
        for pid in self.holders():
            os.kill(pid, 9)
        for process in reversed(self._processes):
            process.kill()
            process.wait()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_card_goes_and_comes_back_as_it_was(host: Host) -> None:
    before = json.loads(host.inside("ip -j link show eth1"))[0]
    assert host.do(*CARD) is None
    assert host.do("running") == {"net": ["card:eth1", "eth1"]}
    assert (host.names(), host.names(host.room)) == (["out0", "out1"], ["eth1"])
    inside = json.loads(host.inside("ip -j link show eth1", host.room))[0]
    # It is up when its rules are there. It listens for the net qube, and its own address stays.
    assert "UP" not in inside["flags"] and inside["address"] == before["address"]
    assert f"{MAC} dev eth1 self permanent" in host.inside("bridge fdb show", host.room)
    assert host.do("stop", "net") is None
    assert host.has_card()
    after = json.loads(host.inside("ip -j link show eth1"))[0]
    assert {key: after[key] for key in ("address", "mtu", "ifindex")} == {
        key: before[key] for key in ("address", "mtu", "ifindex")
    }
    assert MAC not in host.inside("bridge fdb show")
    assert host.do("stop", "net") is None, "nothing to do"


def test_a_card_that_the_host_did_not_use_is_not_used_afterwards(host: Host) -> None:
    host.inside("ip link set eth1 down")
    host.do(*CARD)
    host.do("stop", "net")
    assert "UP" not in json.loads(host.inside("ip -j link show eth1"))[0]["flags"]


def test_a_shared_card_stays_and_the_host_does_not_hear_what_is_for_the_net_qube(host: Host) -> None:
    assert host.do(*SHARED) is None
    assert (host.names(), host.names(host.room)) == (["eth1", "out0", "out1"], ["x3"])
    found = json.loads(host.inside("ip -d -j link show x3", host.room))[0]
    assert (found["address"], found["linkinfo"]["info_data"]["mode"]) == (MAC, "private")
    assert host.holders() == [], "it is made anew where the room has ended"
    assert host.do("stop", "net") is None
    assert host.has_card() and host.names(host.room) == []


def test_the_host_and_a_net_qube_do_not_reach_each_other_by_a_shared_card(host: Host) -> None:
    """What macvlan does about that: what one of them sends by the card goes out, and not to the other."""
    host.inside("ip addr add 198.51.100.2/24 dev eth1")
    host.inside("ip addr add 198.51.100.1/24 dev port", host.switch)
    host.do(*SHARED)
    host.inside("ip addr add 198.51.100.7/24 dev x3; ip link set x3 up", host.room)
    probe = (
        "python3 -c 'import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1);"
        's.bind(("", 7)); s.sendto(b"x", (sys.argv[1], 9)); s.recv(9)\''
    )
    echo = (
        'python3 -c \'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9));'
        "print(flush=True); [s.sendto(*s.recvfrom(9)) for _ in iter(int, 1)]'"
    )
    servers = [
        subprocess.Popen(["nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-c", f"exec {echo}"], stdout=subprocess.PIPE)
        for pid in (host.pid, host.switch)
    ]
    try:
        for server in servers:
            assert server.stdout is not None and server.stdout.readline()
        host.inside(f"{probe} 198.51.100.1", host.room)
        host.inside(f"{probe} 198.51.100.1")
        with pytest.raises(subprocess.CalledProcessError):
            host.inside(f"{probe} 198.51.100.2 2>/dev/null", host.room)
    finally:
        for server in servers:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()


def test_what_cannot_be_given_is_refused_by_name(host: Host) -> None:
    assert host.refusal("card:eth9") == "this host has no card eth9"
    assert "out0 is this host's only way to the network" in host.refusal("card:out0")
    host.inside("ip link add br0 type bridge; ip link set out1 master br0")
    host.inside("ip tuntap add tun5 mode tun; ip tuntap add tap5 mode tap")
    assert host.refusal("card:out1") == "out1 is in use: it is a part of br0"
    assert host.refusal("shared:out1") == "out1 is in use: it is a part of br0"
    assert "br0 is not a card but a bridge" in host.refusal("card:br0")
    assert host.refusal("card:tun5") == "tun5 is no Ethernet card"
    assert "tap5 is no Ethernet card" in host.refusal("card:tap5")
    assert "tap5 is no Ethernet card" in host.refusal("shared:tap5")
    host.inside("ip link add v7 link eth1 type macvlan")
    assert host.refusal("card:eth1") == "eth1 is in use: v7 is above it"
    assert list((host.run_directory / "qubes").iterdir()) == [] and host.holders() == []


def test_a_way_that_is_one_of_two_may_go(host: Host) -> None:
    host.inside("ip addr add 198.51.100.2/24 dev eth1; ip route add default via 198.51.100.1 metric 9")
    assert host.do("start", "net", "card:out0", "x3", MAC) is None
    host.do("stop", "net")
    host.inside("ip route flush default; ip addr flush dev eth1; ip addr add 192.0.2.2/24 dev out0")
    assert "only way" in host.refusal("card:out0"), "the only card with an address, where there are no routes"


def test_a_card_is_of_one_net_qube(host: Host) -> None:
    host.do(*CARD)
    assert host.refusal("card:eth1", "other") == "eth1 is in use: net has it"
    assert host.refusal("shared:eth1", "other") == "eth1 is in use: net has it"
    host.do("stop", "net")
    host.do(*SHARED)
    assert host.do("start", "other", "shared:eth1", "x4", "02:00:5e:00:00:04") is None
    assert host.names(host.room) == ["x3", "x4"]
    assert host.refusal("card:eth1", "third") == "eth1 is in use: net has it"


def test_an_ordinary_user_is_told_who_can(host: Host) -> None:
    host.end_lab()
    host.lab = host.start_lab(root=False)
    assert "only a daemon that is root" in host.refusal("card:eth1")


def test_a_full_disk_keeps_the_card_where_it_is(host: Host) -> None:
    host.ask(full=True)
    assert "eth1 is not taken, because that cannot be written down" in host.refusal("card:eth1")
    assert host.has_card()
    host.ask(full=False)
    assert host.do(*CARD) is None
    host.do("stop", "net")


def test_a_start_that_is_given_up_leaves_the_card_to_the_host(host: Host) -> None:
    assert host.ask(cancel=list(CARD[1:])) is None
    wait_for(host.has_card, 5)
    assert host.do(*CARD) is None
    host.do("stop", "net")
    assert host.has_card()


def test_two_at_once_do_not_get_one_card(host: Host) -> None:
    """Two daemons of one state never run, but two of different states do. The kernel gives the card to one of them."""
    with short_directory("cmc") as directory:
        (directory / "qubes").mkdir()
        second = Host.__new__(Host)
        second.__dict__.update(host.__dict__, run_directory=directory)
        second.new_room()
        second.lab = second.start_lab()
        try:
            for one in (host, second):
                assert one.lab.stdin is not None
                one.lab.stdin.write(json.dumps({"do": list(CARD)}) + "\n")
                one.lab.stdin.flush()
            answers = [json.loads(one.lab.stdout.readline())["answer"] for one in (host, second)]  # type: ignore[union-attr]
            assert sorted(answer is None for answer in answers) == [False, True], answers
            for one in (host, second):
                assert one.do("stop", "net") is None
            wait_for(host.has_card, 10)
        finally:
            second.end_lab()


def test_a_name_that_was_given_away_meanwhile(host: Host) -> None:
    host.do(*CARD)
    host.inside("ip link add eth1 type veth peer name other")
    host.do("stop", "net")
    assert host.names() == ["card0", "eth1", "other", "out0", "out1"]
    assert json.loads(host.inside("ip -j link show card0"))[0]["mtu"] == 1400


def test_a_card_that_vanishes_is_noticed_and_taken_again(host: Host) -> None:
    for start, interface in ((CARD, "eth1"), (SHARED, "x3")):
        host.do(*start)
        host.inside("ip link del port", host.switch)  # as a card that is pulled out
        wait_for(lambda: interface not in host.names(host.room), 10)  # noqa: B023
        wait_for(lambda: host.ask(changes=1), 10)
        assert host.do("look") == ["net"]
        assert host.do("running") == {}
        assert host.do(*start)["error"] == "this host has no card eth1"
        before = host.ask(changes=1)
        host.inside(f"ip link add eth1 type veth peer name port netns {host.switch}; ip link set eth1 up mtu 1400")
        wait_for(lambda: host.ask(changes=1) > before, 10)  # noqa: B023
        assert host.do(*start) is None
        host.do("stop", "net")
        assert host.has_card()


def test_a_card_outlives_daemon_and_room(host: Host) -> None:
    host.do(*CARD)
    assert len(host.holders()) == 1
    host.end_lab()
    inode = Path(f"/proc/{host.room}/ns/net").stat().st_ino
    host.kill_room()
    (holder,) = host.holders()
    assert Path(f"/proc/{holder}/ns/net").stat().st_ino == inode and host.names(holder) == ["eth1"]
    # The next room's process is in the same room, which is found by what is in it.
    host.room = holder
    host.lab = host.start_lab()
    assert host.do("adopt", "net") is True
    assert host.do("running") == {"net": ["card:eth1", "eth1"]}
    assert len(host.holders()) == 1
    host.do("reclaim", ["net"])
    assert host.names(holder) == ["eth1"], "its qube runs"
    host.do("stop", "net")
    assert host.has_card()


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_the_card_is_back(host: Host, stage: str) -> None:
    start = SHARED if stage == "shared" else CARD
    backwards = stage in ("returning", "returned", "released")
    if backwards:
        assert host.do(*start) is None
    host.ask(die=stage)
    assert host.do(*(("stop", "net") if backwards else start)) == "killed"
    assert host.lab.wait(10) == -signal.SIGKILL
    host.end_lab()
    host.kill_room()
    host.new_room()
    host.lab = host.start_lab()
    assert host.do("adopt", "net") is False
    host.do("reclaim", [])
    wait_for(host.has_card, 10)
    assert host.do(*CARD) is None, "it can be had again"
    host.do("stop", "net")
    assert host.has_card()


def test_another_namespaces_interface_of_that_name_is_left_alone(host: Host) -> None:
    """The number of a namespace that has ended is used again, by a container for one."""
    for start, name in ((CARD, "eth1"), (SHARED, "x3")):
        host.do(*start)
        record = host.run_directory / "qubes" / "net.card"
        text = record.read_text()
        host.do("stop", "net")
        container = host.namespace()
        host.inside("ip link add low type veth peer name low2", container)
        how = "link low type macvlan" if name == "x3" else "type veth peer name far"
        host.inside(f"ip link add {name} {how}", container)
        before = host.names(container)
        told = json.loads(text) | {"room": Path(f"/proc/{container}/ns/net").stat().st_ino}
        record.write_text(json.dumps(told))
        host.do("reclaim", [])
        assert host.names(container) == before and not record.exists()
        assert host.has_card()


def test_clean_gives_cards_back(host: Host) -> None:
    host.do(*CARD)
    host.end_lab()
    settings = Settings(
        state=host.run_directory, run=host.run_directory, cache=host.run_directory, hypervisor="embed", prefix="t-"
    )
    settings.store_file.parent.mkdir(parents=True, exist_ok=True)
    settings.store_file.write_text("")
    with open(f"/proc/{host.pid}/ns/net") as net, open("/proc/self/ns/net") as own:
        libc = ctypes.CDLL(None)
        libc.setns(net.fileno(), 0x40000000)
        try:
            end_processes(settings)
        finally:
            libc.setns(own.fileno(), 0x40000000)
    settings.store_file.unlink()
    wait_for(lambda: host.names() == ["eth1", "out0", "out1"] and not host.holders(), 10)
    host.lab = host.start_lab()
