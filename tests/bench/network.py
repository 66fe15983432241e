"""``python -m tests.bench.network``: what the guard of wires costs, beside a bare bridge between the same taps.

With ``--write`` the table goes to docs/reference/performance.md, section "Network". Needs root: it reaches into the
wire room to put the bridge there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from tests.bench import figures, of_world
from tests.bench.figures import Row, middle, seconds
from tests.live.world import World

ROUNDS = 5
STREAM_MIB = 16
"""About a quarter of a second for an emulated guest."""
TRIPS = 200
CLIENTS = 20
CLIENT_MIB = 2
RULES = 256
PORT = 7000
NET, QUBE = "net", "work"
PROGRESS = sys.stderr

SERVER = f"""
import os, socket, threading, time
class Group:
    # So many clients begin together; all are told how long it took until the last had sent everything.
    def __init__(self, count):
        self.begin = threading.Barrier(count, self.begun)
        self.end = threading.Barrier(count, self.ended)
    def begun(self): self.at = time.monotonic()
    def ended(self): self.took = time.monotonic() - self.at
groups = {{count: Group(count) for count in (1, {CLIENTS})}}
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count = c.recv(1)[0]
    if count == 0:
        while (data := c.recv(1)): c.sendall(data)
    else:
        group = groups[count]
        group.begin.wait()
        c.sendall(b"g")
        while c.recv(1 << 16): pass
        group.end.wait()
        c.sendall(str(group.took).encode())
    c.close()
s = socket.create_server(("", {PORT}), backlog=64)
if os.fork(): os._exit(0)
os.setsid()
for fd in range(3): os.dup2(os.open("/dev/null", os.O_RDWR), fd)
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""

CLIENT = """
import socket, time
def connect():
    c = socket.create_connection(({gateway!r}, {port}), 20)
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return c
"""

STREAM = (
    CLIENT
    + """
c, block = connect(), bytes(1 << 16)
c.sendall(bytes([{clients}]))
assert c.recv(1) == b"g"
for _ in range({mib} * 16): c.sendall(block)
c.shutdown(1)
print(c.recv(100).decode())
"""
)

TRIP = (
    CLIENT
    + """
c, times = connect(), []
c.sendall(bytes(1))
for _ in range({trips}):
    begin = time.monotonic()
    c.sendall(b"x"); c.recv(1)
    times.append(time.monotonic() - begin)
print(sorted(times)[{trips} // 2])
"""
)

WAIT = (
    CLIENT
    + """
print("waiting", flush=True)
while True:
    try:
        connect()
        break
    except OSError:
        time.sleep(0.005)
print("there", flush=True)
"""
)


class Bench:
    """One state with a net qube and its clients, all running."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.qubes = Qubes(Transport(world.settings, daemon=()))
        self.gateway = ""

    def make(self) -> None:
        """The qubes. The net qube takes connections at one port, which is not what net qubes do otherwise."""
        self.world.run("casemate", "template", "build", timeout=1800)
        self.make_qube(NET, "--prop", "netvm=", "--prop", "provides_network=True")
        self.make_qube(QUBE, "--prop", f"netvm={NET}")
        self.gateway = self.world.inside(NET, "qubesdb-read /qubes-netvm-gateway")
        self.world.run("qvm-run", "--pass-io", "-u", "root", NET, "python3 -", data=SERVER.encode())
        self.world.inside(NET, f"nft add rule ip qubes custom-input tcp dport {PORT} accept", user="root")

    def make_qube(self, name: str, *words: str) -> None:
        """One qube, started."""
        self.world.run("qvm-create", "--label", "red", "--prop", "memory=200", *words, name)
        self.world.run("qvm-start", name)

    def measure(self, script: str, qube: str = QUBE) -> float:
        """What a program in a qube prints: seconds."""
        done = self.world.run("qvm-run", "--pass-io", qube, "python3 -", data=script.encode())
        return float(done.stdout)

    def script(self, script: str, **more: int) -> str:
        """A program for a client."""
        return script.format(gateway=self.gateway, port=PORT, trips=TRIPS, **more)

    # -- the wire room

    def in_room(self, *argv: str, data: str = "") -> str:
        """Run a program in the wire room."""
        command = ["nsenter", f"--net=/proc/{self.world.room_pid()}/ns/net", *argv]
        return subprocess.run(command, input=data, capture_output=True, text=True, check=True).stdout

    def property(self, name: str, key: str) -> str:
        """A property of a qube."""
        return self.world.run("qvm-prefs", name, key).stdout.decode().strip()

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The two taps of the wire on a bridge, without any rule; afterwards all is as before."""
        rules = self.in_room("nft", "list", "ruleset")
        taps = (f"u{self.property(QUBE, 'qid')}", f"d{self.property(NET, 'qid')}")
        # The guard writes the address of the client's interface into each frame; a bridge does not.
        address, mac = self.property(QUBE, "ip"), self.property(QUBE, "mac")
        self.world.inside(NET, f"ip neigh replace {address} lladdr {mac} nud permanent dev vif0", user="root")
        self.in_room("nft", "flush", "ruleset")
        self.in_room("ip", "link", "add", "bench0", "type", "bridge")
        try:
            for tap in taps:
                self.in_room("ip", "link", "set", tap, "master", "bench0")
            self.in_room("ip", "link", "set", "bench0", "up")
            yield
        finally:
            self.in_room("ip", "link", "del", "bench0")
            self.in_room("nft", "-f", "-", data=rules)

    # -- what is measured

    def wires(self) -> list[Row]:
        """Throughput and round trips, guarded and bare in turn."""
        stream, trip = self.script(STREAM, mib=STREAM_MIB, clients=1), self.script(TRIP)
        found: dict[str, list[float]] = {"stream": [], "bare stream": [], "trip": [], "bare trip": []}
        self.measure(stream)  # the emulator translates the programs
        for number in range(ROUNDS):
            PROGRESS.write(f"round {number + 1} of {ROUNDS}\n")
            found["stream"].append(STREAM_MIB / self.measure(stream))
            found["trip"].append(self.measure(trip))
            with self.bare():
                found["bare stream"].append(STREAM_MIB / self.measure(stream))
                found["bare trip"].append(self.measure(trip))
        rate, bare_rate = middle(found["stream"]), middle(found["bare stream"])
        trip_time, bare_trip = middle(found["trip"]), middle(found["bare trip"])
        how = (
            f"A qube sends to its net qube by TCP, {STREAM_MIB} MiB and {TRIPS} round trips of a byte (p50), with the "
            f"guard's rules and with the same two taps on a bridge without rules, {ROUNDS} times in turn; medians."
        )
        return [
            Row(
                "throughput from a qube to its net qube", f"{rate:.0f} MiB/s", f"bare bridge {bare_rate:.0f} MiB/s",
                f"{rate / bare_rate:.2f}", "≥ 0.9", rate / bare_rate >= 0.9, how,
            ),
            Row(
                "round trip", seconds(trip_time), f"bare bridge {seconds(bare_trip)}", f"{trip_time / bare_trip:.2f}",
                "≤ 1.1", trip_time / bare_trip <= 1.1, how,
            ),
        ]  # fmt: skip

    def attaching(self) -> Row:
        """A running qube gets a wire."""
        self.make_qube("late", "--prop", "netvm=")
        took = []
        for _ in range(ROUNDS):
            process = subprocess.Popen(
                ["qvm-run", "--pass-io", "late", "python3 -u -"],
                env=self.world.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(self.script(WAIT).encode())
            process.stdin.close()
            assert process.stdout.readline() == b"waiting\n"
            begin = time.perf_counter()
            self.qubes.call("admin.vm.property.Set", "netvm", "late", NET.encode())
            assert process.stdout.readline() == b"there\n"
            took.append(time.perf_counter() - begin)
            process.wait(60)
            self.qubes.call("admin.vm.property.Set", "netvm", "late", b"")
            self.world.inside("late", "while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done")
        return Row(
            "a running qube gets a net qube", seconds(middle(took)),
            how=f"admin.vm.property.Set of `netvm` until a connection to the net qube is made, {ROUNDS} times; median.",
        )  # fmt: skip

    def rules(self) -> Row:
        """Many rules of one qube, until they hold on the host: the answer of the call says that they do."""

        def text(count: int, port: int) -> bytes:
            rules = (f"action=accept proto=tcp dst4=203.0.113.{n % 256} dstports={port + n}" for n in range(count))
            return "".join(f"{rule}\n" for rule in (*rules, "action=accept")).encode()

        many, one = [], []
        for number in range(ROUNDS):
            for count, took in ((RULES - 1, many), (0, one)):
                data = text(count, 1000 + number)
                time.sleep(2)  # so that the net qube has done with the rules before
                begin = time.perf_counter()
                self.qubes.call("admin.vm.firewall.Set", "", QUBE, data)
                took.append(time.perf_counter() - begin)
        return Row(
            f"{RULES} rules of a running qube", seconds(middle(many)), f"one rule {seconds(middle(one))}",
            f"{middle(many) / middle(one):.1f}", "≤ 50 ms", middle(many) <= 0.05,
            "admin.vm.firewall.Set of a running qube until its answer, which says that they hold on the host: parsed, "
            f"written to disk, loaded into the kernel; {ROUNDS} times in turn with one rule; medians.",
        )  # fmt: skip

    def share_of_start(self) -> Row:
        """The network's step of a start, from the daemon's log."""
        log = (self.world.settings.run / "log" / "casemated.log").read_text()
        found = re.findall(rf"{re.escape(QUBE)}: booted: (.*)", log)
        assert found, "the daemon's log does not tell of the start"
        steps = {step.split()[0]: float(step.split()[1]) for step in found[-1].split(", ")}
        whole = sum(steps.values())
        share = steps["network"] / whole
        return Row(
            "the network's share of a start", seconds(steps["network"]), f"the start {seconds(whole)}",
            f"{share:.3f}", "≤ 0.05", share <= 0.05, "The steps of one start, as the daemon's log has them.",
        )  # fmt: skip

    def many(self) -> Row:
        """Many clients of one net qube send at once."""
        names = [f"c{number}" for number in range(CLIENTS)]
        for name in names:
            PROGRESS.write(f"{name} starts\n")
            self.make_qube(name, "--prop", f"netvm={NET}")
        one = self.script(STREAM, mib=CLIENTS * CLIENT_MIB, clients=1)
        each = self.script(STREAM, mib=CLIENT_MIB, clients=CLIENTS)
        alone, together = [], []
        for _ in range(3):
            alone.append(CLIENTS * CLIENT_MIB / self.measure(one, names[0]))
            with ThreadPoolExecutor(CLIENTS) as pool:
                took = set(pool.map(lambda name: self.measure(each, name), names))
            together.append(CLIENTS * CLIENT_MIB / took.pop())
        return Row(
            f"{CLIENTS} clients of one net qube send at once, together", f"{middle(together):.1f} MiB/s",
            f"one of them {middle(alone):.0f} MiB/s", f"{middle(together) / middle(alone):.2f}",
            how=f"Each sends {CLIENT_MIB} MiB, all from the same moment until the last has done; beside it one of "
            "them that sends as much as all. 3 times; medians. None failed.",
        )  # fmt: skip

    def run(self) -> list[Row]:
        """All rows."""
        self.make()
        return [*self.wires(), self.rules(), self.share_of_start(), self.attaching(), self.many()]


def _rows(world: World) -> list[figures.Row]:
    return Bench(world).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0."""
    return of_world.main(__doc__ or "", "network", _rows, argv)


if __name__ == "__main__":
    sys.exit(main())
