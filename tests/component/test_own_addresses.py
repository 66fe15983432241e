"""What this host answers for itself, in a namespace with a kernel's own tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SETUP = """
ip link set lo up
ip link add v0 type veth peer name v1
ip link set v0 up
ip link set v1 up
ip addr add 192.0.2.2/24 dev v0
ip -6 addr add 2001:db8:1::2/64 dev v0 nodad
ip route add local 198.18.0.0/24 dev lo
ip -6 route add local 2001:db8:9::/64 dev lo
ip route add local 0.0.0.0/0 dev lo table 100
ip -6 route add local ::/0 dev lo table 100
"""
PRINT = "import json; from casemate.host.own_addresses import own_addresses; print(json.dumps(own_addresses()))"


def own_addresses(*more: str) -> tuple[set[str], set[str]]:
    """Of a namespace that is set up so; ``more`` are further commands."""
    how = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
    script = SETUP + "\n".join(more) + f"\nexec '{sys.executable}' -c '{PRINT}'"
    done = subprocess.run(["unshare", *how, "sh", "-euc", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    four, six = json.loads(done.stdout)
    return set(four), set(six)


def test_addresses_and_local_networks_are_this_host() -> None:
    four, six = own_addresses()
    assert four == {"127.0.0.0/8", "192.0.2.2", "198.18.0.0/24"}
    assert six - {one for one in six if one.startswith("fe80:")} == {"::1", "2001:db8:1::2", "2001:db8:9::/64"}


def test_the_anycast_address_of_a_router_is_this_host() -> None:
    _four, six = own_addresses("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
    assert "2001:db8:1::" in six
