"""Calls into a qube without a tool: straight to its link's socket, one connection each."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from casemate.streams.exactly import exactly
from casemate.wire.call_data import CallerSide
from casemate.wire.link import CONTROL, control_message, parse_object
from casemate.wire.qrexec import DATA_STDIN, DATA_STDOUT, HEADER, exec_message
from casemate.wire.vmexec import encode_vmexec

CHUNK = 65536
_HEADER = struct.Struct("<II")


class Failed(Exception):
    """A call did not end as it should have."""


def connect(path: Path) -> socket.socket:
    """A connection that gives up after a minute."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect(str(path))
    return sock


def request(words: Sequence[str], user: str = "DEFAULT") -> bytes:
    """The message that asks for a program."""
    return exec_message(f"{user}:QUBESRPC qubes.VMExec+{encode_vmexec(words)} dom0")


def call(link: Path, words: Sequence[str], user: str = "DEFAULT") -> bytes:
    """Run a program with empty standard input; its output. Failed unless it ends with 0."""
    return _finish(link, request(words, user))


def shell(link: Path, line: str) -> bytes:
    """Have the qube's shell run a line as ``qvm-run`` does; its output."""
    text = f"exec \"${{BASH:-/bin/sh}}\" -c '{line}' || exit 127\n".encode()
    return _finish(
        link, exec_message("DEFAULT:QUBESRPC qubes.VMShell dom0") + HEADER.pack(DATA_STDIN, len(text)) + text
    )


def _finish(link: Path, first: bytes) -> bytes:
    side, output = CallerSide(), bytearray()
    with connect(link) as sock:
        sock.sendall(first + HEADER.pack(DATA_STDIN, 0))
        while side.exit_code is None:
            data = sock.recv(CHUNK)
            if not data:
                break
            for kind, view in side.feed(data):
                if kind == DATA_STDOUT:
                    output += view
    if side.exit_code != 0:
        raise Failed(f"exit code {side.exit_code}")
    return bytes(output)


def send(link: Path, size: int) -> float:
    """Seconds from the first byte of ``size`` to ``cat >/dev/null`` until the call has ended."""
    side = CallerSide()
    message = HEADER.pack(DATA_STDIN, CHUNK) + bytes(CHUNK)
    with connect(link) as sock:
        sock.sendall(request(["sh", "-c", "echo ready; exec cat >/dev/null"]))
        until_ready(sock, side)
        begin = time.perf_counter()
        for _ in range(size // CHUNK):
            sock.sendall(message)
        sock.sendall(HEADER.pack(DATA_STDIN, 0))
        while side.exit_code is None and (data := sock.recv(CHUNK)):
            side.feed(data)
        if side.exit_code != 0:
            raise Failed(f"stream to the guest: exit code {side.exit_code}")
        return time.perf_counter() - begin


def receive(link: Path, size: int) -> float:
    """Seconds from the word to go until ``head -c SIZE /dev/zero`` has arrived and ended."""
    side, got = CallerSide(), 0
    with connect(link) as sock:
        sock.sendall(request(["sh", "-c", f"echo ready; read go; exec head -c {size} /dev/zero"]))
        until_ready(sock, side)
        begin = time.perf_counter()
        sock.sendall(HEADER.pack(DATA_STDIN, 3) + b"go\n" + HEADER.pack(DATA_STDIN, 0))
        while side.exit_code is None and (data := sock.recv(4 * CHUNK)):
            got += sum(len(view) for kind, view in side.feed(data) if kind == DATA_STDOUT)
        if side.exit_code != 0 or got != size:
            raise Failed(f"stream from the guest: exit code {side.exit_code}, {got} of {size} bytes")
        return time.perf_counter() - begin


def until_ready(sock: socket.socket, side: CallerSide) -> None:
    """Wait until the program has said ``ready``."""
    text = b""
    while text != b"ready\n":
        data = sock.recv(CHUNK)
        if not data:
            raise Failed("the stream ended before it began")
        text += b"".join(bytes(view) for _kind, view in side.feed(data))


def when_ready(link: Path, within: float) -> None:
    """Wait until the agent behind a link answers."""
    with connect(link) as sock:
        sock.settimeout(within + 5)
        sock.sendall(control_message({"op": "ready", "within": within}))
        try:
            kind, length = _HEADER.unpack(exactly(sock, _HEADER.size))
            answer = parse_object(exactly(sock, length), "answer") if kind == CONTROL else {}
        except EOFError:
            raise Failed("the link closed the connection") from None
    if answer.get("ready") is not True:
        raise Failed(f"the agent does not answer: {answer}")
