"""Everything without privileges: a net qube with an uplink and a client, by a user who is not root."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import short_directory, wait_for
from tests.live.network.conftest import PROBE
from tests.live.network.ordinary import OrdinaryUser
from tests.live.network.outside import HOST, OTHER, SERVER, Outside
from tests.live.world import BIN, World

pytestmark = pytest.mark.live


@contextmanager
def state_of_a_user(outside: Outside, namespaces: bool = True, tun: bool = True) -> Iterator[OrdinaryUser]:
    closed = [str(path) for path in BIN.parents if not path.stat().st_mode & 0o001]
    if closed:
        pytest.skip(f"other users cannot read this checkout: {', '.join(closed)}")
    with short_directory("cmu") as directory:
        directory.chmod(0o711)
        made = OrdinaryUser(directory, outside, namespaces, tun)
        try:
            made.run("casemate", "template", "build", timeout=600)
            yield made
        finally:
            made.run("casemate", "clean", "--all")
            left = made.processes()
            assert left == {}


def reach(user: OrdinaryUser, qube: str, *places: tuple[str, str, int]) -> list[bool]:
    named = [(str(number), *place) for number, place in enumerate(places)]
    script = f"{PROBE}\nmain({named!r})\n".encode()
    found = json.loads(user.run("qvm-run", "--pass-io", "-u", "root", qube, "python3 -", data=script).stdout)
    return [found[str(number)] for number in range(len(places))]


def in_room(user: OrdinaryUser) -> list[int]:
    """The processes in the network namespace of the state's wires."""
    inode = int((user.settings.run / "room").read_text())
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/net").stat().st_ino == inode:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_user_without_privileges_has_the_whole_network(world: World, outside: Outside) -> None:
    with state_of_a_user(outside) as user:
        user.run("qvm-create", "-l", "red", "--prop", "provides_network=True", "--prop", "netvm=", "--prop",
                 "memory=200", "sys-net")  # fmt: skip
        user.run("qvm-features", "sys-net", "net.uplink", "pasta")
        user.run("qvm-create", "-l", "blue", "--prop", "netvm=sys-net", "--prop", "memory=200", "work")
        user.run("qvm-firewall", "work", "reset")
        user.run("qvm-firewall", "work", "del", "--rule-no", "0")
        user.run("qvm-firewall", "work", "add", "accept", f"dst4={SERVER}")
        user.run("qvm-firewall", "work", "add", "accept", f"dst4={HOST}")
        user.run("qvm-start", "work")
        server, other = ("tcp", SERVER, 80), ("tcp", OTHER, 80)
        # The host's address is not reached although a rule lets it: from the qube and from its net qube.
        host = [("tcp", HOST, 80), ("tcp", HOST, 22), ("udp", HOST, 7)]
        wait_for(lambda: reach(user, "work", server) == [True], 60)
        assert reach(user, "work", server, other, *host) == [True, False, False, False, False]
        assert reach(user, "sys-net", server, other, *host) == [True, True, False, False, False]
        status = user.run("casemate", "status").stdout.decode()
        assert "none for qubes" not in status

        pids = in_room(user)
        assert len(pids) >= 3  # two of QEMU, and the process that watches over the wires
        names = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        assert all("CapEff:\t0000000000000000" in text for text in names if "qemu" in text.splitlines()[0])
        user.run("qvm-kill", "work")
        user.run("qvm-kill", "sys-net")
        wait_for(lambda: not any("pasta" in line for line in user.processes().values()), 30)
        wait_for(lambda: len(in_room(user)) == 1, 30)
    # Who has ended stays in the table until process 1 looks, which some do once a second or two.
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30)


def test_where_user_namespaces_are_forbidden_only_wires_are_missing(world: World, outside: Outside) -> None:
    with state_of_a_user(outside, namespaces=False) as user:
        status = user.run("casemate", "status").stdout.decode()
        line = next(line for line in status.splitlines() if line.startswith("network"))
        assert "none for qubes" in line and "/proc/sys/user/max_user_namespaces" in line
        user.run("qvm-create", "-l", "red", "--prop", "provides_network=True", "--prop", "netvm=", "--prop",
                 "memory=200", "sys-net")  # fmt: skip
        user.run("qvm-create", "-l", "blue", "--prop", "netvm=sys-net", "--prop", "memory=200", "work")
        user.run("qvm-create", "-l", "black", "--prop", "netvm=", "--prop", "memory=200", "vault")
        for name in ("sys-net", "work"):
            done = user.run("qvm-start", name, status=None)
            assert done.returncode != 0 and b"max_user_namespaces" in done.stderr, done
            assert user.state(name) == "Halted"
        user.run("qvm-start", "vault")
        assert user.inside("vault", "ls /sys/class/net") == "lo"
        assert user.run("casemate", "net", "show").returncode == 0


def test_where_tun_is_closed_it_is_said(world: World, outside: Outside) -> None:
    with state_of_a_user(outside, tun=False) as user:
        user.run("qvm-create", "-l", "red", "--prop", "provides_network=True", "--prop", "netvm=", "sys-net")
        user.run("qvm-features", "sys-net", "net.uplink", "pasta")
        done = user.run("qvm-start", "sys-net", status=None)
        assert done.returncode != 0 and b"/dev/net/tun is closed to this user" in done.stderr, done
        assert user.state("sys-net") == "Halted"
