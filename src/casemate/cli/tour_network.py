"""The tour's step about the network: net qubes, a firewall, and this host out of reach."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.tour import Tour

_ASK_NAMES = b"""
import socket
asked = b"\\x12\\x34\\x01\\x00\\x00\\x01" + bytes(6) + b"\\x03www\\x06debian\\x03org\\x00\\x00\\x01\\x00\\x01"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(4)
try:
    s.connect(("10.139.1.1", 53))
    s.send(asked)
    answer = s.recv(4096)
    print("answered" if answer[:2] == asked[:2] and answer[3] & 15 != 2 else "failed")
except OSError as error:
    print(error)
"""
_CONNECT = """
import socket
reached = []
for address in {addresses}:
    try:
        socket.create_connection((address, {port}), 3).close()
        reached.append(address)
    except OSError:
        pass
print(reached)
"""


def _own_addresses() -> list[str]:
    """IPv4 addresses of this host, those of its loopback last."""
    text = Path("/proc/net/fib_trie").read_text()
    found = sorted(set(re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", text)))
    return [one for one in found if not one.startswith("127.")] + [one for one in found if one.startswith("127.")]


def _has_names() -> bool:
    """Whether a name server answers this host; "no such name" is an answer, too."""
    try:
        socket.getaddrinfo("www.debian.org", 80)
    except socket.gaierror as error:
        return error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
    return True


def show(tour: Tour) -> None:
    """All of it."""
    tour.run("qvm-create", "--label", "red", "--prop", "provides_network=True", "--prop", "netvm=", "sys-net")
    tour.run("qvm-features", "sys-net", "net.uplink", "pasta")
    tour.run(
        "qvm-create",
        "--label",
        "green",
        "--prop",
        "provides_network=True",
        "--prop",
        "netvm=sys-net",
        "sys-firewall",
    )
    for name in ("work", "vault"):
        tour.run("qvm-prefs", name, "netvm", "sys-firewall")
    tour.run("qvm-firewall", "vault", "reset")
    tour.run("qvm-firewall", "vault", "add", "--before", "0", "drop", "specialtarget=dns")
    for name in ("sys-net", "sys-firewall"):
        begin = time.monotonic()
        tour.run("qvm-start", name)
        tour.say(f"{name}: wish to answer {time.monotonic() - begin:.1f} s")
    # The server is what every host has: its name server, at the address that all qubes know it by.
    if _has_names():
        _who_reaches_a_server(tour)
    else:
        tour.say("this host itself cannot resolve names, so what qubes reach outside is not shown")
    _host_is_out_of_reach(tour)
    tour.say(tour.run("casemate", "net", "show").decode())
    tour.run("qvm-shutdown", "--wait", "--force", "work", "vault", "sys-firewall", "sys-net")
    for name in ("work", "vault"):
        tour.run("qvm-prefs", name, "netvm", "")
    tour.run("qvm-remove", "--force", "sys-firewall", "sys-net")
    tour.run("qvm-start", "work")
    tour.run("qvm-start", "vault")


def _who_reaches_a_server(tour: Tour) -> None:
    there = _asks_names(tour, "work", 60)
    tour.check(there, "work got its interface while it runs, and is answered by a name server")
    tour.check(not _asks_names(tour, "vault", 0), "vault, whose firewall says no, is not")
    tour.run("qvm-firewall", "vault", "reset")
    tour.check(_asks_names(tour, "vault", 30), "vault is, once its firewall lets it")


def _asks_names(tour: Tour, qube: str, seconds: float) -> bool:
    """Whether a qube's query comes back from a name server outside, whatever the answer; tried so long."""
    end = time.monotonic() + seconds
    while True:
        out = tour.run("qvm-run", "--pass-io", qube, "python3 -", data=_ASK_NAMES, show=False).decode().strip()
        if out == "answered" or time.monotonic() > end:
            return out == "answered"


def _host_is_out_of_reach(tour: Tour) -> None:
    """A server of this host listens on all of its addresses; no qube reaches it by any of them."""
    addresses = _own_addresses()
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104
        port = server.getsockname()[1]
        with socket.create_connection((addresses[0], port), 5):
            pass
        script = _CONNECT.format(addresses=addresses, port=port).encode()
        for qube in ("work", "sys-net"):
            reached = tour.run("qvm-run", "--pass-io", qube, "python3 -", data=script, show=False).decode().strip()
            tour.check(reached == "[]", f"{qube} reaches this host by none of {len(addresses)} addresses", reached)
