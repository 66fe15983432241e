"""The channel without any of our code: a second port of a bare guest, small programs at its guest's end."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from casemate.wire.call_data import CallerSide
from casemate.wire.qrexec import DATA_STDIN, HEADER
from tests.bench import caller

_PORT = 'port=/dev/$(basename "$(dirname "$(grep -lx raw /sys/class/virtio-ports/*/name)")")'

_ECHO = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(1, b"ready\\n")
while data := os.read(fd, 8):
    os.write(fd, data)
"""


@contextlib.contextmanager
def _in_guest(link: Path, script: str) -> Iterator[socket.socket]:
    """A shell script that runs while the block does; it has said ``ready``."""
    side = CallerSide()
    with caller.connect(link) as sock:
        sock.sendall(caller.request(["sh", "-c", f"{_PORT}; {script}"], "root"))
        caller.until_ready(sock, side)
        yield sock
        while side.exit_code is None and (data := sock.recv(65536)):
            side.feed(data)
    if side.exit_code != 0:
        raise caller.Failed(f"{script[:60]}: exit code {side.exit_code}")


def round_trips(link: Path, raw: socket.socket, count: int) -> list[float]:
    """Seconds of each of ``count`` messages of 8 bytes to a program in the guest and back."""
    times = []
    with _in_guest(link, f"exec python3 -I -S -c '{_ECHO}' \"$port\""):
        for number in range(count):
            message = number.to_bytes(8, "little")
            begin = time.perf_counter()
            raw.sendall(message)
            answer = b""
            while len(answer) < 8:
                answer += raw.recv(8 - len(answer))
            times.append(time.perf_counter() - begin)
            if answer != message:
                raise caller.Failed("the echo is not what was sent")
        raw.shutdown(socket.SHUT_RDWR)  # the guest reads the end, and its program ends
    return times


def send(link: Path, raw: socket.socket, size: int, chunk: int, into: str = ">/dev/null") -> float:
    """Seconds until a program in the guest has read ``size`` bytes, and has put them ``into``."""
    script = (
        f'echo ready; dd "if=$port" bs={chunk} count={size} iflag=count_bytes,fullblock 2>/dev/null {into}'
        ' && echo done >"$port"'
    )
    data = bytes(chunk)
    with _in_guest(link, script):
        begin = time.perf_counter()
        for _ in range(size // chunk):
            raw.sendall(data)
        answer = b""
        while answer != b"done\n":
            answer += raw.recv(16)
        return time.perf_counter() - begin


def receive(link: Path, raw: socket.socket, size: int, chunk: int, source: str = "</dev/zero ") -> float:
    """Seconds until ``size`` bytes of a program in the guest have arrived; ``source`` is what they come from."""
    copy = f'dd "of=$port" bs={chunk} count={size} iflag=count_bytes,fullblock 2>/dev/null'
    script = f"echo ready; read -r go; {source}{copy}"
    with _in_guest(link, script) as sock:
        begin = time.perf_counter()
        sock.sendall(HEADER.pack(DATA_STDIN, 3) + b"go\n" + HEADER.pack(DATA_STDIN, 0))
        got = 0
        while got < size:
            got += len(raw.recv(4 * chunk))
        return time.perf_counter() - begin
