"""Joins a call to a service that is a socket: ``service-connect KIND TARGET FLAGS DESCRIPTOR``."""

from __future__ import annotations

import os
import socket
import sys

from casemate.streams.join import join
from casemate.streams.loop import Loop
from casemate.streams.pipe_stream import PipeStream
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import Stream


def main(argv: list[str]) -> int:
    """Connect, tell the service who calls, then move bytes until both directions have ended.

    KIND is ``socket`` (TARGET a path) or ``tcp`` (TARGET ``HOST PORT``). FLAGS: ``s`` ends the call when the service
    ends its output, ``c`` when the caller ends. An empty DESCRIPTOR is not sent.
    """
    kind, target, flags, descriptor = argv[1:5]
    try:
        if kind == "socket":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(target)
        else:
            host, _, port = target.rpartition(" ")
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            sock.connect((host, int(port)))
        if descriptor:
            sock.sendall(descriptor.encode("ascii") + b"\0")
        serve(sock, flags)
    except OSError as error:
        sys.stderr.write(f"{target}: {error.strerror}\n")
        return 125
    return 0


def serve(sock: socket.socket, flags: str) -> None:
    """Join the service's socket to our standard descriptors, until both directions have ended or FLAGS say so."""
    loop = Loop()
    caller = PipeStream(loop, os.dup(0), os.dup(1))
    _release(0, os.O_RDONLY)
    _release(1, os.O_WRONLY)  # or the caller would not see the end of the service's output when it happens
    service = SocketStream(loop, sock, drain=True)
    over = False

    def done(_why: str) -> None:
        nonlocal over
        over = True

    def ended(end: Stream) -> None:
        if end is caller and "c" in flags or end is service and "s" in flags:
            done("")

    join(service, caller, done, on_end=ended)
    while not over or caller.pending or service.pending:
        loop.once(None)


def _release(fd: int, mode: int) -> None:
    null = os.open(os.devnull, mode | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)
