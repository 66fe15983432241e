"""Joins a call to a service that is a socket: ``service-connect KIND TARGET FLAGS DESCRIPTOR``."""

from __future__ import annotations

import os
import select
import socket
import sys

CHUNK = 65536


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
        _join(sock, flags)
    except OSError as error:
        sys.stderr.write(f"{target}: {error.strerror}\n")
        return 125
    return 0


def _join(sock: socket.socket, flags: str) -> None:
    sock.setblocking(False)
    for fd in (0, 1):
        os.set_blocking(fd, False)
    to_service, to_caller = b"", b""
    reading = writing = True  # of the caller's stream; of the service's
    while True:
        poll = select.poll()
        from_sock = select.POLLIN if writing and not to_caller else 0
        to_sock = select.POLLOUT if to_service else 0
        if from_sock or to_sock or not writing:
            poll.register(sock, from_sock | to_sock)  # with 0 it still tells that the service is gone
        if reading and not to_service:
            poll.register(0, select.POLLIN)
        if to_caller:
            poll.register(1, select.POLLOUT)
        ready = dict(poll.poll())
        if 0 in ready:
            to_service = os.read(0, CHUNK)
            if not to_service:
                reading = False
                if "c" in flags:
                    return
                sock.shutdown(socket.SHUT_WR)
        if 1 in ready:
            to_caller = to_caller[os.write(1, to_caller) :]
        events = ready.get(sock.fileno(), 0)
        if from_sock and events & ~select.POLLOUT:
            to_caller = sock.recv(CHUNK)
            if not to_caller:
                writing = False
                os.dup2(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC), 1)
                if "s" in flags:
                    return
        if to_sock and events & select.POLLOUT:
            try:
                to_service = to_service[sock.send(to_service) :]
            except (BrokenPipeError, ConnectionResetError):
                reading, to_service = False, b""
        gone = events & (select.POLLHUP | select.POLLERR)
        if not writing and (gone or not (reading or to_service)):
            return
