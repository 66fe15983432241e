"""Calls that programs in a qube make: what they cost, and very many at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live

TIMES = """
import json, os, subprocess, time
def timed(argv):
    begin = time.perf_counter()
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
kinds = {
    "true": ["/bin/true"],
    "python": ["/usr/bin/python3", "-I", "-S", "-c", "pass"],
    "call": ["/usr/bin/qrexec-client-vm", "TARGET", "test.Echo"],
    "read": ["/usr/bin/qubesdb-read", "/name"],
}
times = {kind: [] for kind in kinds}
for _ in range(15):
    for kind, argv in kinds.items():
        times[kind].append(timed(argv))
print(json.dumps({kind: sorted(found)[7] for kind, found in times.items()}))
"""

MANY = """
import subprocess, sys
argv = ["/usr/bin/qrexec-client-vm", "TARGET", "test.Echo"]
callers = []
for number in range(int(sys.argv[1])):
    callers.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
for number, caller in enumerate(callers):
    caller.stdin.write(b"%d" % number)
    caller.stdin.close()
good = sum(caller.stdout.read() == b"%d" % number for number, caller in enumerate(callers))
print(good, sum(caller.wait() == 0 for caller in callers))
"""


@pytest.fixture(scope="module")
def target(world: World, work: str) -> Iterator[str]:
    """A second running qube that serves test.Echo to the shared one."""
    world.run("qvm-create", "--label", "black", "echoer")
    world.run("qvm-start", "echoer")
    world.inside("echoer", "mkdir -p /usr/local/etc/qubes-rpc", user="root")
    world.inside("echoer", "ln -sf /bin/cat /usr/local/etc/qubes-rpc/test.Echo", user="root")
    policy = Path(world.settings.policy_dir) / "30-echo.policy"
    policy.write_text(f"test.Echo * {work} echoer allow\n")
    yield "echoer"
    policy.unlink()
    world.run("qvm-kill", "echoer", status=None)
    wait_for(lambda: world.state("echoer") == "Halted")
    world.run("qvm-remove", "-f", "echoer")


def test_a_call_costs_less_than_the_start_of_python(world: World, usable: str, target: str) -> None:
    """Ratios of the same run. A tool that were a Python program would take its start alone."""
    done = world.run("qvm-run", "--pass-io", usable, "python3 -I -S -", data=TIMES.replace("TARGET", target).encode())
    found = json.loads(done.stdout)
    print(found)
    assert found["read"] < found["python"], found
    assert found["call"] < 2 * found["python"], found


def test_500_calls_at_once_are_all_answered(world: World, usable: str, target: str) -> None:
    program = MANY.replace("TARGET", target)
    done = world.run("qvm-run", "--pass-io", usable, "python3 -I -S - 500", data=program.encode(), timeout=240)
    assert done.stdout.split() == [b"500", b"500"]
    assert world.inside(usable, "echo alive") == "alive"
