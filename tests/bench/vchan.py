"""``python -m tests.bench.vchan``: qrexec over vchan without a VM, as ratios within one run.

Our daemon and two of our agents, each a process; the caller is this process (one loop, no process per call), the
service is ``/bin/true``. The limit is what starting that program costs here at all: fork and exec from a small
process, one after the other and 16 at once. With ``--write`` the table goes to docs/reference/performance.md, section
"qrexec over vchan". What is compared is measured in turn, round by round.

One file although it is long: a run measures all of it in turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from casemate.calls.vchan_sockets import Server, SocketDirectory
from casemate.streams.loop import HANGUP, READ, Loop
from casemate.wire import qrexec_control as control
from casemate.wire.qrexec import DATA_EXIT_CODE, DATA_STDIN, DATA_STDOUT, EXEC_CMDLINE, HEADER
from tests.bench import figures
from tests.component.vchan_place import ME, answers, eventually

ROOT = Path(__file__).parents[2]
ROUNDS = 5
CALLS = 300
STREAM = 1 << 30
CHUNK = 65536
_START = control.hello(4) + HEADER.pack(DATA_STDIN, 0)
_HELLO = control.hello(3)

FORKER = """
import os, sys, time
count, at_once = int(sys.argv[1]), int(sys.argv[2])
spawn = sys.argv[3] == "spawn"
begin, running, started = time.perf_counter(), 0, 0
while started < count or running:
    while running < at_once and started < count:
        if spawn:
            os.posix_spawn("/bin/true", ["true"], {})
        else:
            if os.fork() == 0:
                os.execv("/bin/true", ["true"])
        running += 1
        started += 1
    os.wait()
    running -= 1
print(time.perf_counter() - begin)
"""

POLICY = """
import os, socket, sys
door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[1])
door.listen(128)
print("ready", flush=True)
while True:
    sock, _ = door.accept()
    data = b""
    while not data.endswith(b"\\n\\n"):
        data += sock.recv(65536)
    target = data.partition(b"intended_target=")[2].partition(b"\\n")[0]
    head = b"result=allow\\nuser=DEFAULT\\nautostart=False\\ntarget="
    sock.sendall(head + target + b"\\nrequested_target=" + target + b"\\n")
    sock.close()
"""

SINK = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
buffer = bytearray(65536)
left = int(sys.argv[2])
while left:
    left -= sock.recv_into(buffer)
sock.send(b"x")
"""


class Scene:
    """Daemon, agents and policy in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.services = directory / "rpc"
        self.services.mkdir()
        (directory / "v").mkdir()
        (directory / "s").mkdir()
        (self.services / "true").symlink_to("/bin/true")
        self.script("zeros", f"exec dd if=/dev/zero bs={CHUNK} count={STREAM // CHUNK} 2>/dev/null")
        self.script("sink", "exec cat >/dev/null")
        self.place = SocketDirectory(str(directory / "v"), 0)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.spawn([sys.executable, "-S", "-c", POLICY, str(directory / "policy")], 0)
        words = [f"--socket-dir={directory}/s", f"--policy-socket={directory}/policy", f"5:a::{ME}", f"6:b::{ME}"]
        self.spawn([sys.executable, "-m", "casemate.vchan.daemon", *words], 0)
        for domain in (5, 6):
            argv = [sys.executable, "-m", "casemate.vchan.agent", f"--domain={domain}"]
            self.spawn([*argv, f"--agent-socket={directory}/agent{domain}"], domain)
        for name in "ab":
            eventually(lambda name=name: answers(directory / f"s/qrexec.{name}"))  # type: ignore[misc]

    def script(self, name: str, text: str) -> None:
        path = self.services / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def spawn(self, argv: list[str], domain: int) -> None:
        env = {
            "PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "VCHAN_SOCKET_DIR": str(self.directory / "v"),
            "VCHAN_DOMAIN": str(domain), "QREXEC_SERVICE_PATH": str(self.services),
            "QUBES_RPC_CONFIG_PATH": str(self.directory / "config"),
        }  # fmt: skip
        process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Call:
    """One call of a program: asks, serves the data channel, reads to the exit code, hears of the end."""

    def __init__(self, loop: Loop, scene: Scene, service: str, done: Callable[[], None]) -> None:
        self.loop = loop
        self.scene = scene
        self.service = service
        self.done = done
        self.status = -1
        self.data = b""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path())
        loop.watch(self.sock.fileno(), READ | HANGUP, self.ready)
        self.begin()

    def path(self) -> str:
        raise NotImplementedError

    def begin(self) -> None:
        pass

    def ready(self, _mask: int) -> None:
        raise NotImplementedError

    def serve(self, path: str) -> None:
        Server(self.loop, path, self.accepted)

    def accepted(self, peer: socket.socket) -> None:
        self.peer = peer
        peer.send(_START)
        self.loop.watch(peer.fileno(), READ | HANGUP, self.read)

    def read(self, _mask: int) -> None:
        data = self.peer.recv(65536)
        self.data += data
        # HELLO, two ends, the exit code; a service of these says nothing else.
        if len(self.data) >= 12 + 8 + 8 + 12:
            kind, length, self.status = struct.unpack("<IIi", self.data[-12:])
            assert (kind, length) == (DATA_EXIT_CODE, 4), self.data
        elif data:
            return
        self.loop.unwatch(self.peer.fileno())
        self.peer.close()
        self.over()

    def over(self) -> None:
        pass

    def end(self) -> None:
        self.loop.unwatch(self.sock.fileno())
        self.sock.close()
        assert self.status == 0, self.data
        self.done()


class FromHost(Call):
    """A client of the daemon; ends when the daemon says that the call has."""

    step = 0
    ended = 0

    def path(self) -> str:
        return f"{self.scene.directory}/s/qrexec.b"

    def ready(self, _mask: int) -> None:
        data = self.sock.recv(4096)
        self.step += 1
        if self.step == 1:
            cmdline = f"DEFAULT:QUBESRPC {self.service} dom0".encode() + b"\0"
            self.sock.send(_HELLO + control.params(EXEC_CMDLINE, 0, 0, cmdline))
        elif self.step == 2:
            domain, port, _ = control.parse_params(data[8:])
            self.serve(self.scene.place.path(0, domain, port))
        else:
            assert not data
            self.loop.unwatch(self.sock.fileno())
            self.over()

    def over(self) -> None:
        self.ended += 1
        if self.ended == 2:  # the data channel and the daemon, in whichever order they are seen
            self.end()


class FromQube(Call):
    """A program in the first qube."""

    target = "b"

    def path(self) -> str:
        return f"{self.scene.directory}/agent5"

    def begin(self) -> None:
        self.sock.send(control.trigger4(self.target, self.service))

    def ready(self, _mask: int) -> None:
        domain, port = control.answer_place(self.sock.recv(8))
        self.serve(self.scene.place.path(5, domain, port))

    def over(self) -> None:
        self.end()


class ToHost(FromQube):
    """The same, for a service of the host."""

    target = "dom0"


def calls(scene: Scene, kind: type[Call], count: int, at_once: int, service: str = "true") -> float:
    """Seconds of so many calls."""
    loop = Loop()
    started = ended = 0

    def done() -> None:
        nonlocal ended
        ended += 1
        if started < count:
            start()
        elif ended == count:
            loop.stop()

    def start() -> None:
        nonlocal started
        started += 1
        kind(loop, scene, service, done)

    begin = time.perf_counter()
    for _ in range(at_once):
        start()
    loop.run()
    elapsed = time.perf_counter() - begin
    loop.close()
    return elapsed


def programs(count: int, at_once: int, how: str) -> float:
    """Seconds of as many programs without any call."""
    argv = [sys.executable, "-I", "-S", "-c", FORKER, str(count), str(at_once), how]
    return float(subprocess.run(argv, capture_output=True, check=True).stdout)


def stream_call(scene: Scene, service: str) -> tuple[socket.socket, socket.socket]:
    """(the data channel of a call from the host, the connection to the daemon)."""
    control_sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control_sock.connect(f"{scene.directory}/s/qrexec.b")
    control_sock.recv(12)
    cmdline = f"DEFAULT:QUBESRPC {service} dom0".encode() + b"\0"
    control_sock.sendall(_HELLO + control.params(EXEC_CMDLINE, 0, 0, cmdline))
    domain, port, _ = control.parse_params(control_sock.recv(16)[8:])
    found: list[socket.socket] = []
    loop = Loop()
    Server(loop, scene.place.path(0, domain, port), found.append)
    while not found:
        loop.once(None)
    loop.close()
    peer = found[0]
    peer.sendall(control.hello(4))
    peer.recv(12, socket.MSG_WAITALL)
    return peer, control_sock


def from_service(scene: Scene) -> float:
    """Seconds until 1 GiB of a service has come."""
    begin = time.perf_counter()
    peer, control_sock = stream_call(scene, "zeros")
    got, buffer = 0, bytearray(CHUNK)
    view = memoryview(buffer)
    while True:
        kind, length = HEADER.unpack(peer.recv(8, socket.MSG_WAITALL))
        if kind == DATA_EXIT_CODE:
            break
        left = length
        while left:
            left -= peer.recv_into(view[:left])
        got += length if kind == DATA_STDOUT else 0
    elapsed = time.perf_counter() - begin
    assert got == STREAM, got
    peer.close()
    control_sock.close()
    return elapsed


def to_service(scene: Scene) -> float:
    """Seconds until a service has read 1 GiB."""
    begin = time.perf_counter()
    peer, control_sock = stream_call(scene, "sink")
    message = HEADER.pack(DATA_STDIN, CHUNK) + bytes(CHUNK)
    for _ in range(STREAM // CHUNK):
        peer.sendall(message)
    peer.sendall(HEADER.pack(DATA_STDIN, 0))
    data = b""
    while more := peer.recv(4096):
        data += more
    elapsed = time.perf_counter() - begin
    assert data[-12:] == struct.pack("<III", DATA_EXIT_CODE, 4, 0), data
    peer.close()
    control_sock.close()
    return elapsed


def plain_socket() -> float:
    """Seconds of 1 GiB over a unix socket between two processes, in writes and reads of 64 KiB."""
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-I", "-S", "-c", SINK, str(theirs.fileno()), str(STREAM)]
    with subprocess.Popen(argv, pass_fds=(theirs.fileno(),)):
        theirs.close()
        data = bytes(CHUNK)
        begin = time.perf_counter()
        for _ in range(STREAM // CHUNK):
            ours.sendall(data)
        ours.recv(1)
        elapsed = time.perf_counter() - begin
    ours.close()
    return elapsed


def pipe() -> float:
    """Seconds of the same program's 1 GiB over a pipe into another."""
    begin = time.perf_counter()
    argv = ["dd", "if=/dev/zero", f"bs={CHUNK}", f"count={STREAM // CHUNK}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        buffer = bytearray(CHUNK)
        while os.readv(writer.stdout.fileno(), [buffer]):
            pass
    return time.perf_counter() - begin


def echo_service(scene: Scene) -> int:
    """A service that is a socket: a process that accepts, reads and closes; its number."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(scene.services / "sock"))
    listener.listen(128)
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                sock, _ = listener.accept()
                while sock.recv(4096):
                    pass
                sock.close()
        finally:
            os._exit(1)
    listener.close()
    return pid


class Table:
    """Rows of the page."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def add(self, what: str, mine: str, limit: str, ratio: float, upstream: float, aim: float) -> None:
        """One row."""
        word = "met" if ratio >= aim else "**not met**"
        shown = f"{upstream:.2f}" if upstream else ""
        cells = (what, mine, limit, f"{ratio:.2f}", shown, f"at least {aim:.2f}", word)
        self.rows.append("| " + " | ".join(cells) + " |")
        print(self.rows[-1], flush=True)


UPSTREAM = {
    ("host to qube", 1): 135 / 580, ("host to qube", 16): 204 / 1053, ("qube to qube", 1): 76 / 580,
    ("qube to qube", 16): 124 / 1053, ("qube to host", 1): 104 / 580, ("qube to host", 16): 183 / 1053,
    ("host to qube, the service is a socket", 1): 190 / 580, ("host to qube, the service is a socket", 16): 275 / 1053,
}  # fmt: skip
KINDS: dict[str, tuple[type[Call], str]] = {
    "host to qube": (FromHost, "true"),
    "qube to qube": (FromQube, "true"),
    "qube to host": (ToHost, "true"),
    "host to qube, the service is a socket": (FromHost, "sock"),
}


def measure(table: Table, scene: Scene, rounds: int, count: int) -> None:
    """Calls, in turn with what bounds them; then streams."""
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for at_once in (1, 16):
            for how in ("fork", "spawn"):
                times.setdefault((how, at_once), []).append(programs(count, at_once, how))
            for name, (kind, service) in KINDS.items():
                times.setdefault((name, at_once), []).append(calls(scene, kind, count, at_once, service))
    rate = {key: count / statistics.median(found) for key, found in times.items()}
    for name in KINDS:
        for at_once in (1, 16):
            limit, mine = rate["fork", at_once], rate[name, at_once]
            upstream = UPSTREAM[name, at_once]
            words = f"call, {name}, {'one after the other' if at_once == 1 else '16 at once'}"
            table.add(words, f"{mine:.0f}/s", f"{limit:.0f}/s", mine / limit, upstream, 3 * upstream)
    spawned = [f"{rate['spawn', at_once]:.0f}/s" for at_once in (1, 16)]
    print(f"posix_spawn, without fork's copying: {spawned[0]}; 16 at once: {spawned[1]}", flush=True)
    table.rows.append(f"| the limit without fork's copying (posix_spawn) | | {spawned[0]}; {spawned[1]} | | | | |")
    streams: list[list[float]] = [[], [], [], []]
    for _ in range(3):
        for found, work in zip(
            streams, (plain_socket, pipe, lambda: from_service(scene), lambda: to_service(scene)), strict=True
        ):
            found.append(work())
    plain, piped, out, into = (STREAM / 1e6 / statistics.median(found) for found in streams)
    for words, mine, upstream in (("service to caller", out, 60 / 1497), ("caller to service", into, 157 / 1497)):
        table.add(f"stream, {words}", f"{mine:.0f} MB/s", f"{plain:.0f} MB/s", mine / plain, upstream, 0.5)
    words = "the same, to a pipe from the same program"
    table.add(words, f"{out:.0f} MB/s", f"{piped:.0f} MB/s", out / piped, 60 / 627, 0.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 also when an aim is missed: the table says so."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vchan", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reference/performance.md")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--calls", type=int, default=CALLS)
    args = parser.parse_args(argv)
    directory = Path(tempfile.mkdtemp(prefix="bench-vchan-"))
    table = Table()
    load = os.getloadavg()[0]
    scene, pid = Scene(directory), 0
    try:
        pid = echo_service(scene)
        measure(table, scene, args.rounds, args.calls)
    finally:
        scene.close()
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(directory)
    if args.write:
        write(table, load, args)
    return 0


def write(table: Table, load: float, args: argparse.Namespace) -> None:
    """Put the table into the page."""
    lines = [
        f"`python -m tests.bench.vchan --write`, {os.cpu_count()} processors, load average {load:.1f} at the beginning "
        f"and {os.getloadavg()[0]:.1f} at the end; medians of {args.rounds} rounds of {args.calls} calls of "
        "`/bin/true`, taken in turn with the limit: fork and exec of the same program from a small Python process. "
        "Three processes serve (daemon, two agents) and one decides as the policy; the caller is the load driver "
        "itself, not a tool started for each call. Streams are 1 GiB in messages of 64 KiB, the limit is a plain unix "
        "socket between two processes. The column of Qubes OS has the ratio that its own programs reach over the same "
        "sockets, to the limit of their own run; the aim is three times that, and half of what a stream is compared "
        "with. A stream of a service passes three processes on two processors: program, agent, caller. "
        "With 16 calls at once on a busy host the bound is posix_spawn, which returns only when the new program has "
        "had a processor: see its line.",
        "",
        "| What | Casemate | Limit | Ratio | Qubes OS | Aim | |",
        "|---|---|---|---|---|---|---|",
        *table.rows,
    ]
    figures.write("bench vchan", "qrexec over vchan", "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
