"""What changes while qubes run: net qubes, firewalls, killed processes. Forbidden stays forbidden meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.live.network.conftest import PORT, Net
from tests.live.network.outside import HOST, OTHER, SERVER

pytestmark = pytest.mark.live

WEB = ("tcp", SERVER, 80)
FORBIDDEN = (("tcp", OTHER, 80), ("tcp", SERVER, 443), ("tcp", HOST, 80), ("udp", SERVER, 7))
"""What ``web`` may not reach."""


def reaches(net: Net, qube: str, *places: tuple[str, str, int]) -> None:
    """Wait until a qube reaches places: a change takes a moment until it holds in its guests."""
    wait_for(lambda: all(net.reach(qube, *places)), 60)


def never(net: Net, qube: str, *places: tuple[str, str, int]) -> None:
    """Wait until a qube reaches none of them."""
    wait_for(lambda: not any(net.reach(qube, *places)), 60)


@contextmanager
def watched(net: Net) -> Iterator[None]:
    """``web`` tries all the time to reach what it may not; it never did."""
    seen: list[list[bool]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                seen.append(net.reach("web", *FORBIDDEN))
            except AssertionError:
                time.sleep(0.2)  # its link, or the daemon, is just being started anew

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert seen and not any(any(one) for one in seen)


def _uplink_pid(net: Net) -> int:
    try:
        return int((net.settings.run / "qubes" / "sys-net.uplink").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def test_the_room_is_another_namespace_and_the_host_has_no_tap(net: Net) -> None:
    here = Path("/proc/self/ns/net").readlink()
    host = Path(f"/proc/{net.outside.host}/ns/net").readlink()
    room = {Path(f"/proc/{net.room_pid()}/ns/net").readlink()}
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if net.settings.prefix.encode() in line.read_bytes() and b"qemu" in line.read_bytes():
                room.add((line.parent / "ns" / "net").readlink())
        except OSError:
            continue
    assert len(room) == 1 and not room & {here, host}


def test_a_qube_gets_and_loses_its_network_while_it_runs(net: Net) -> None:
    assert net.reach("off", WEB) == [False]
    net.run("qvm-prefs", "off", "netvm", "sys-fw")
    reaches(net, "off", WEB, ("icmp", SERVER, 0))
    net.run("qvm-prefs", "off", "netvm", "sys-net")
    reaches(net, "off", WEB)
    net.run("qvm-prefs", "off", "netvm", "")
    wait_for(lambda: net.inside("off", "ls /sys/class/net") == "lo", 60)
    assert net.reach("off", WEB) == [False]
    net.run("qvm-prefs", "off", "netvm", "sys-fw")
    reaches(net, "off", WEB)
    net.run("qvm-prefs", "off", "netvm", "")
    wait_for(lambda: net.inside("off", "ls /sys/class/net") == "lo", 60)


@pytest.mark.parametrize(
    "argv, why",
    [
        (("qvm-prefs", "sys-net", "netvm", "sys-fw"), b"netvm loop"),
        (("qvm-prefs", "web", "netvm", "open"), b"does not provide network"),
        (("qvm-prefs", "web", "netvm", "nobody"), b"nobody"),
        (("qvm-prefs", "sys-fw", "provides_network", "False"), b"does not provide network"),
        (("qvm-remove", "-f", "sys-fw"), b"sys-fw"),
        (("qvm-shutdown", "sys-fw"), b"provides network to running qubes"),
    ],
)
def test_what_would_break_a_network_is_refused(net: Net, argv: tuple[str, ...], why: bytes) -> None:
    done = net.run(*argv, status=None)
    assert done.returncode != 0 and why in done.stderr + done.stdout
    assert net.reach("web", WEB) == [True]


def test_a_firewall_is_tightened_and_loosened_while_a_connection_is_open(net: Net) -> None:
    script = f"""
import socket, sys
c = socket.create_connection(({SERVER!r}, 80), 5)
c.settimeout(3)
c.recv(100)
print("open", flush=True)
for line in sys.stdin:
    try:
        c.sendall(b"x"); print(c.recv(1).decode(), flush=True)
    except OSError as error:
        print("cut", flush=True)
"""
    talk = net.talk("open", script)
    assert talk.stdout is not None and talk.stdin is not None
    assert talk.stdout.readline() == b"open\n"
    talk.stdin.write(b"1\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == b"x\n"
    net.set_rules("open", f"action=accept dst4={OTHER}")
    try:
        talk.stdin.write(b"2\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == b"cut\n"
        reaches(net, "open", ("tcp", OTHER, 80))
        assert net.reach("open", WEB) == [False]
    finally:
        talk.kill()
        talk.wait()
        net.set_rules("open", "action=accept")
    reaches(net, "open", WEB)


def test_a_rule_ends_by_itself_also_over_a_restart(net: Net) -> None:
    end = int(time.time()) + 25
    net.set_rules("shut", f"action=accept expire={end}")
    reaches(net, "shut", WEB)
    net.kill_daemon()
    net.run("qvm-ls")  # starts another
    assert time.time() < end - 2
    assert net.reach("shut", WEB) == [True]
    time.sleep(max(0, end - time.time()) + 1)
    assert net.reach("shut", WEB) == [False]
    assert net.run("qvm-firewall", "--raw", "shut", "list").stdout == b""
    net.set_rules("shut")


def test_names_follow_their_answers(net: Net) -> None:
    net.outside.zone({"a.example.org": {"a": [SERVER], "ttl": 1}, "b.example.org": [OTHER], "c.other.org": [SERVER]})
    dns = "action=accept specialtarget=dns"
    net.set_rules("web")
    never(net, "web", WEB)  # so that reaching it tells that the next rules hold in the net qube too
    net.set_rules("web", "action=accept proto=tcp dsthost=a.example.org dstports=80", dns)
    reaches(net, "web", WEB)
    assert net.reach("web", ("tcp", OTHER, 80)) == [False]
    # It moves: whoever asks reaches where it is now.
    net.outside.zone({"a.example.org": {"a": [OTHER], "ttl": 1}})
    assert net.inside("web", "getent ahostsv4 a.example.org").split()[0] == OTHER
    assert net.reach("web", ("tcp", OTHER, 80)) == [True]
    assert net.reach("web", ("tcp", OTHER, 443)) == [False]
    net.set_rules("web", f"action=accept proto=tcp dst4={SERVER} dstports=80", dns)
    never(net, "web", ("tcp", OTHER, 80))


def test_wildcards_aliases_and_many_answers(net: Net) -> None:
    many = [f"203.0.113.{n}" for n in range(1, 60)] + [OTHER]
    net.outside.zone({
        "x.y.example.org": {"cname": "edge.cdn.net"}, "edge.cdn.net": {"cname": "e1.cdn.net"}, "e1.cdn.net": many,
        "bad.org": {"a": ["203.0.113.77"], "extra": [["www.example.org", SERVER]]},
    })  # fmt: skip
    net.set_rules("web", "action=accept dsthost=*.example.org", "action=accept specialtarget=dns")
    never(net, "web", WEB)  # the rules before let it reach that
    assert net.reach("web", ("tcp", OTHER, 80)) == [False]
    assert OTHER in net.inside("web", "getent ahostsv4 x.y.example.org")  # cut by UDP, asked again by TCP
    assert net.reach("web", ("tcp", OTHER, 80)) == [True]
    # An answer about bad.org also says where www.example.org is. Nobody asked for that.
    net.inside("web", "getent ahostsv4 bad.org")
    assert net.reach("web", WEB) == [False]
    net.set_rules("web", f"action=accept proto=tcp dst4={SERVER} dstports=80", "action=accept specialtarget=dns")
    never(net, "web", ("tcp", OTHER, 80))


def test_a_name_that_does_not_resolve_blocks_itself_alone(net: Net) -> None:
    net.outside.zone({})
    net.set_rules(
        "web", "action=accept dsthost=nowhere.example.org", f"action=accept proto=tcp dst4={SERVER} dstports=80",
        "action=accept specialtarget=dns",
    )  # fmt: skip
    reaches(net, "web", WEB)
    assert net.reach("web", *FORBIDDEN) == [False] * len(FORBIDDEN)
    net.set_rules("web", f"action=accept proto=tcp dst4={SERVER} dstports=80", "action=accept specialtarget=dns")


def test_rules_that_many_set_at_once_are_never_mixed(net: Net) -> None:
    """Each set lets a pair of places through; whatever comes last, one pair is reached and no other."""
    places = [(SERVER, 80), (SERVER, 443), (OTHER, 80), (OTHER, 443)]
    sets = [places[:2], places[2:], [places[0], places[3]]]

    def rules(pair: list[tuple[str, int]]) -> list[str]:
        return [f"action=accept proto=tcp dst4={host} dstports={port}" for host, port in pair]

    def change(number: int) -> None:
        for turn in range(5):
            net.set_rules("shut", *rules(sets[(number + turn) % len(sets)]))

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = net.run("qvm-firewall", "--raw", "shut", "list").stdout.decode()
    stored = [f"dst4={host}/32 dstports={port}-{port}" in last for host, port in places]
    assert stored in [[place in pair for place in places] for pair in sets], last
    wait_for(lambda: net.reach("shut", *(("tcp", *place) for place in places)) == stored, 60)
    net.set_rules("shut")


def test_drops_are_counted_and_shown(net: Net) -> None:
    net.reach("shut", WEB)
    found = json.loads(net.run("casemate", "net", "show", "--json").stdout)
    shut = next(one for one in found["qubes"] if one["name"] == "shut")
    assert found["why"] == "" and shut["joined"]
    assert any("firewall" in causes for causes in shut["dropped"].values())
    text = net.run("casemate", "net", "show").stdout.decode()
    assert "sys-fw" in text and "(uplink)" in text
    assert b"digraph" in net.run("casemate", "net", "show", "--dot").stdout
    assert net.run("casemate", "net", "show", "--svg").stdout.startswith(b"<svg")
    assert b"firewall" in net.run("casemate", "net", "stats").stdout

    # And as events, for who follows them.
    with net.start("qubesd-query", "-e", "dom0", "admin.vm.Stats", "shut") as query:
        events = b""
        try:
            while b"firewall=" not in events:
                events += (piece := os.read(query.stdout.fileno(), 65536))
                assert piece, events
        finally:
            query.kill()
    assert b"shut\0vm-network-stats\0" in events


def test_explain_says_what_really_happens(net: Net) -> None:
    for qube, place, proto in (
        ("web", (SERVER, 80), "tcp"), ("web", (SERVER, 443), "tcp"), ("web", (OTHER, 80), "tcp"),
        ("open", (SERVER, 7), "udp"), ("open", (HOST, 80), "tcp"), ("shut", (SERVER, 80), "tcp"),
        ("off", (SERVER, 80), "tcp"), ("web", (net.ip("open"), PORT), "tcp"),
    ):  # fmt: skip
        done = net.run("casemate", "net", "explain", qube, f"{place[0]}:{place[1]}", "--proto", proto, status=None)
        assert (done.returncode == 0) is net.reach(qube, (proto, *place))[0], done.stdout


# -- kills


@pytest.mark.parametrize("who", ["daemon", "room", "uplink", "link", "net-qube program"])
def test_a_kill_opens_nothing_and_all_comes_back(net: Net, who: str) -> None:
    with watched(net):
        if who == "daemon":
            net.kill_daemon()
            net.run("qvm-ls")
        elif who == "room":
            before = net.room_pid()
            os.kill(before, signal.SIGKILL)
            wait_for(lambda: net.room_pid() not in (0, before), 60)
        elif who == "uplink":
            before = _uplink_pid(net)
            os.kill(before, signal.SIGKILL)
            wait_for(lambda: _uplink_pid(net) not in (0, before), 60)
        elif who == "link":
            before = net.link_pid("sys-fw")
            os.kill(before, signal.SIGKILL)
            wait_for(lambda: net.has_link_but("sys-fw", before), 60)
        else:
            net.inside("sys-fw", "kill -9 $(grep -la net-qube /proc/[0-9]*/cmdline | cut -d/ -f3)", "root", None)
        reaches(net, "web", WEB)
    assert net.reach("web", *FORBIDDEN) == [False] * len(FORBIDDEN)
    reaches(net, "open", ("udp", SERVER, 7))
    # What is changed afterwards holds, so that whoever was killed is really back.
    net.set_rules("shut", f"action=accept dst4={SERVER}")
    reaches(net, "shut", WEB)
    net.set_rules("shut")
    never(net, "shut", WEB)


def test_a_net_qube_that_dies_and_comes_back_finds_its_qubes(net: Net) -> None:
    with watched(net):
        net.run("qvm-kill", "sys-fw")
        assert net.reach("web", WEB) == [False]
        net.begin("sys-fw")
        reaches(net, "web", WEB)
    reaches(net, "open", WEB, ("icmp", SERVER, 0))
    assert net.reach("shut", WEB) == [False]


def test_nothing_is_left_of_what_ends(net: Net) -> None:
    net.run("qvm-create", "--label", "red", "--prop", "netvm=sys-fw", "--prop", "memory=200", "brief")
    qid = net.run("qvm-prefs", "brief", "qid").stdout.decode().strip()
    net.run("qvm-start", "brief")
    reaches(net, "brief", WEB)

    def room(*argv: str) -> str:
        import subprocess

        return subprocess.run(
            ["nsenter", f"--net=/proc/{net.room_pid()}/ns/net", *argv], capture_output=True, text=True, check=True
        ).stdout

    assert f"u{qid}" in room("nft", "list", "ruleset") and f"u{qid}:" in room("ip", "link")
    net.run("qvm-kill", "brief")
    wait_for(lambda: f"u{qid}:" not in room("ip", "link"))
    ruleset = room("nft", "list", "ruleset")
    assert not any(f"{kind}{qid} " in ruleset or f"{kind}{qid}-" in ruleset for kind in "ufgwrst")
    net.run("qvm-remove", "-f", "brief")


def test_a_disposable_that_waited_has_the_network_and_rules_of_its_template(net: Net) -> None:
    props = ("--prop", "netvm=sys-fw", "--prop", "memory=200", "--prop", "template_for_dispvms=True")
    net.run("qvm-create", "--label", "red", *props, "dvm")
    net.set_rules("dvm", f"action=accept dst4={SERVER}")
    try:
        net.run("casemate", "warm", "build", "dvm")  # so the wire is one that a saved guest gets, not one that boots
        net.run("qvm-features", "dvm", "preload-dispvm-max", "1")
        waiting = ("qvm-ls", "--raw-data", "--fields", "name", "--internal", "y", "--paused")
        wait_for(lambda: net.run(*waiting, status=None).stdout.strip(), 180)
        reply = net.run("qubesd-query", "--fail", "-e", "dom0", "admin.vm.CreateDisposable", "dvm").stdout.decode()
        name = reply.removeprefix("0\0")
        assert net.state(name) == "Running" and net.ip(name).startswith("10.138.")
        reaches(net, name, WEB)
        assert net.reach(name, ("tcp", OTHER, 80)) == [False]
        net.run("qvm-kill", name)
    finally:
        net.run("qvm-remove", "-f", "dvm")
