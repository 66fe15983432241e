"""Joins a call to a service that is a socket: ``service-connect KIND TARGET FLAGS DESCRIPTOR``."""

from __future__ import annotations

import os
import select
import socket
import sys

CHUNK = 65536


def main(argv: list[str]) -> int:
    """Connect, tell the service who calls, then move bytes until both directions have ended.

    KIND is ``socket`` (TARGET a path) or ``tcp`` (TARGET ``HOST PORT``). FLAGS: ``s`` ends the call when the service ends
    its output, ``c`` when the caller ends. An empty DESCRIPTOR is not sent.
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
    poll = select.poll()
    while True:
        masks = {0: 0, 1: 0, sock.fileno(): 0}
        if reading and not to_service:
            masks[0] |= select.POLLIN
        if writing and not to_caller:
            masks[sock.fileno()] |= select.POLLIN
        if to_service:
            masks[sock.fileno()] |= select.POLLOUT
        if to_caller:
            masks[1] |= select.POLLOUT
        if not any(masks.values()):
            return
        for fd, mask in masks.items():
            if mask:
                poll.register(fd, mask)
        ready = dict(poll.poll())
        for fd, mask in masks.items():
            if mask:
                poll.unregister(fd)
        if 0 in ready and masks[0]:
            data = os.read(0, CHUNK)
            to_service = data
            if not data:
                reading = False
                sock.shutdown(socket.SHUT_WR)
                if "c" in flags:
                    return
        if sock.fileno() in ready:
            if masks[sock.fileno()] & select.POLLIN:
                try:
                    to_caller = sock.recv(CHUNK)
                    ended = not to_caller
                except BlockingIOError:
                    ended = False
                if ended:
                    writing = False
                    os.close(1)
                    os.open("/dev/null", os.O_WRONLY)  # the lowest free number: 1 again
                    if "s" in flags:
                        return
            if to_service:
                try:
                    to_service = to_service[sock.send(to_service) :]
                except BlockingIOError:
                    pass
        if 1 in ready and to_caller:
            to_caller = to_caller[os.write(1, to_caller) :]
