"""A real net qube whose uplink is a card of the tests' host, and a client behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from casemate.cli.clean import machines_of
from tests.builders import short_directory, wait_for
from tests.live.network.conftest import Net
from tests.live.network.lan import BEYOND, CARD, LEASED, NAME, Lan
from tests.live.network.outside import HOST, SERVER, Outside
from tests.live.network.test_addresses import hello

pytestmark = pytest.mark.live

WEB, MAIL = ("tcp", BEYOND, 80), ("tcp", BEYOND, 25)


@pytest.fixture(scope="module")
def lan(outside: Outside) -> Iterator[Lan]:
    with short_directory("cml") as directory:
        made = Lan(outside, directory)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def cards(outside: Outside, lan: Lan) -> Iterator[Net]:
    """A net qube and a client, halted."""
    with short_directory("cmk") as directory:
        directory.chmod(0o711)
        made = Net(directory, outside)
        try:
            made.run("casemate", "template", "build", timeout=1800)
            made.run("qvm-features", "dom0", "casemate-warm", "")
            made.run("qvm-create", "-l", "red", "--prop", "provides_network=True", "--prop", "netvm=", "--prop",
                     "memory=200", "sys-net")  # fmt: skip
            made.run("qvm-create", "-l", "blue", "--prop", "netvm=sys-net", "--prop", "memory=200", "work")
            yield made
        finally:
            # By the daemon, which is on the tests' host; what clean takes back comes to where clean runs.
            made.run("qvm-kill", "sys-net", status=None)
            made.clean()
        assert CARD in interfaces(lan)


def interfaces(lan: Lan) -> list[str]:
    """Those of the tests' host."""
    return lan.on_host("ls /proc/sys/net/ipv4/conf").split()


def address(net: Net) -> str:
    return net.inside("sys-net", "ip -4 -o addr show dev eth0", user="root", status=None)


def reaches(net: Net) -> bool:
    return net.reach("work", WEB) == [True]


def status(net: Net) -> str:
    text = net.run("casemate", "status").stdout.decode()
    return next(line for line in text.splitlines() if line.startswith("network"))


def kill_machine(net: Net, name: str) -> None:
    (pid,) = (pid for pid, found in machines_of(net.settings).items() if found == name)
    os.kill(pid, signal.SIGKILL)


def test_a_card_is_the_way_out_and_comes_back_whatever_is_killed(cards: Net, lan: Lan) -> None:
    net = cards
    net.run("qvm-features", "sys-net", "net.uplink", f"card:{CARD}")
    net.run("qvm-start", "work")
    assert CARD not in interfaces(lan)
    wait_for(lambda: LEASED in address(net), 60)
    wait_for(lambda: reaches(net), 60)
    # The client is hidden behind the net qube; the net qube is a machine of that network; names are those of there.
    assert hello(net, "work", BEYOND) == f"hello {LEASED}"
    assert net.inside("work", f"getent ahostsv4 {NAME}").startswith(BEYOND)
    assert f"{CARD}" in status(net) and f"card {CARD}" in net.run("casemate", "net", "show").stdout.decode()
    told = net.run("casemate", "net", "explain", "work", f"{BEYOND}:80").stdout.decode()
    assert f"by the card {CARD}" in told
    # The other network is not there, and neither is this host.
    assert net.reach("work", ("tcp", SERVER, 80), ("tcp", HOST, 80)) == [False, False]

    # The client stays guarded, with a rule that the host enforces.
    net.set_rules("work", f"action=accept proto=tcp dst4={BEYOND} dstports=80")
    assert net.reach("work", WEB, MAIL) == [True, False]
    net.set_rules("work", "action=accept")

    # Killed with all that is not a qube, and found again.
    room = net.room_pid()
    net.kill_daemon()
    try:
        os.kill(room, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ends with its daemon
    assert net.state("sys-net") == "Running" and CARD not in interfaces(lan)
    assert reaches(net)
    assert f"{CARD}" in status(net)
    os.kill(net.room_pid(), signal.SIGKILL)
    wait_for(lambda: net.run("qvm-run", "--pass-io", "work", "true", status=None).returncode == 0, 60)
    assert reaches(net)

    # A card that is pulled out does not stop the qube, and is taken again.
    lan.pull()
    wait_for(lambda: "has vanished" in status(net) or "no card" in status(net), 30)
    assert "which is missing" in net.run("casemate", "net", "show").stdout.decode()
    assert net.state("sys-net") == "Running" and not reaches(net)
    lan.plug()
    wait_for(lambda: CARD not in interfaces(lan), 30)
    wait_for(lambda: reaches(net), 60)

    # The machine's own process ends, while a daemon runs, and while none does.
    kill_machine(net, "sys-net")
    wait_for(lambda: CARD in interfaces(lan), 60)
    assert "state UP" in lan.on_host(f"ip link show {CARD}")
    wait_for(lambda: net.state("sys-net") == "Halted", 60)
    net.run("qvm-start", "sys-net")
    assert CARD not in interfaces(lan)
    wait_for(lambda: reaches(net), 90)
    net.kill_daemon()
    kill_machine(net, "sys-net")
    assert net.state("sys-net") == "Halted"
    assert CARD in interfaces(lan)

    # An orderly end gives it back as well.
    net.run("qvm-start", "sys-net")
    net.run("qvm-kill", "sys-net")
    wait_for(lambda: CARD in interfaces(lan), 30)


def test_a_shared_card_stays_with_the_host_and_an_address_can_be_given(cards: Net, lan: Lan) -> None:
    net = cards
    net.run("qvm-features", "sys-net", "net.uplink", f"shared:{CARD}")
    net.run("qvm-start", "sys-net")
    if net.state("work") != "Running":
        net.run("qvm-start", "work")
    assert CARD in interfaces(lan)
    wait_for(lambda: LEASED in address(net), 60)
    wait_for(lambda: reaches(net), 60)
    assert hello(net, "work", BEYOND) == f"hello {LEASED}"
    assert f"shared:{CARD}" in status(net)

    given = "203.0.113.9"
    net.run("qvm-features", "sys-net", "net.uplink-gateway", "203.0.113.1")
    net.run("qvm-features", "sys-net", "net.uplink-dns", "203.0.113.1")
    net.run("qvm-features", "sys-net", "net.uplink-ip", f"{given}/24")
    wait_for(lambda: f"{given}/24" in address(net) and LEASED not in address(net), 60)
    wait_for(lambda: reaches(net), 60)
    assert hello(net, "work", BEYOND) == f"hello {given}"
    assert net.inside("work", f"getent ahostsv4 {NAME}").startswith(BEYOND)
    # It cannot send as anybody else: the host says so, whatever the net qube does.
    change = "ip addr del 203.0.113.9/24 dev eth0; ip addr add 203.0.113.10/24 dev eth0; ip route add default via {}"
    net.inside("sys-net", change.format("203.0.113.1"), user="root")
    assert not reaches(net)
    dropped = net.run("casemate", "net", "stats").stdout.decode()
    assert "arp" in dropped or "spoof" in dropped
    net.run("qvm-kill", "work")
    net.run("qvm-kill", "sys-net")
    for feature in ("net.uplink-ip", "net.uplink-gateway", "net.uplink-dns"):
        net.run("qvm-features", "--unset", "sys-net", feature)


def test_killed_while_it_starts_the_card_is_back(cards: Net, lan: Lan) -> None:
    net = cards
    net.run("qvm-features", "sys-net", "net.uplink", f"card:{CARD}")
    net.run("casemate", "status")  # a daemon runs
    tool = subprocess.Popen(
        [*net.outside.command(), "qvm-start", "sys-net"],
        env=net.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: CARD not in interfaces(lan), 30)
        room = net.room_pid()
        net.kill_daemon()
        with contextlib.suppress(ProcessLookupError):
            os.kill(room, signal.SIGKILL)
    finally:
        tool.wait(60)
    # The tool, or the next one, has started another daemon, which ends what was half begun, or finds it whole.
    wait_for(lambda: net.state("sys-net") in ("Halted", "Running"), 60)
    net.run("qvm-kill", "sys-net", status=None)
    wait_for(lambda: CARD in interfaces(lan), 30)
    assert not list((net.settings.run / "qubes").glob("*.card"))
    net.run("qvm-start", "sys-net")
    wait_for(lambda: LEASED in address(net), 60)
    net.run("qvm-kill", "sys-net")


def test_a_card_that_cannot_be_given_is_named_and_nothing_starts(cards: Net, lan: Lan) -> None:
    net = cards
    for uplink, why in (
        ("card:none0", "this host has no card none0"),
        ("card:out0", "out0 is this host's only way to the network"),
        ("shared:lo0", "this host has no card lo0"),
    ):
        net.run("qvm-features", "sys-net", "net.uplink", uplink)
        done = net.run("qvm-start", "sys-net", status=None)
        assert done.returncode != 0 and why in done.stderr.decode(), done
        assert net.state("sys-net") == "Halted"
    done = net.run("qvm-features", "sys-net", "net.uplink", "card:../x", status=None)
    assert done.returncode != 0 and b"is no name of a card" in done.stderr
    assert {"out0", CARD} <= set(interfaces(lan))
    net.run("qvm-features", "sys-net", "net.uplink", f"card:{CARD}")
    net.run("qvm-features", "sys-net", "net.uplink-gateway", "203.0.113.1")
    done = net.run("qvm-start", "sys-net", status=None)
    assert done.returncode != 0 and b"net.uplink-gateway means nothing without net.uplink-ip" in done.stderr
    net.run("qvm-features", "--unset", "sys-net", "net.uplink-gateway")
