"""The updates proxy of a net qube: one connection of a proxy's client on standard input and output, for one call.

A template without a network reaches Debian's mirrors by it (service ``qubes.UpdatesProxy``). It knows ``CONNECT
HOST:443`` and ``GET http://HOST/...`` and goes to nothing else: no other port, no address between qubes, none of this
qube or of a loopback. It does not look into what it carries; apt verifies that. One request a call: the answer ends the
connection.
"""

from __future__ import annotations

import os
import re
import socket
import sys

from casemate.streams.ready import readable
from casemate.wire.errors import ProtocolError

MAX_HEAD = 16384
"""Limit of a net qube: bytes of a request to the updates proxy."""
SECONDS = 20.0
"""For a connection, and for a request to be complete."""
IDLE_SECONDS = 120.0
PORTS = (80, 443)
_HOST = rb"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?"
_CONNECT = re.compile(rb"CONNECT (" + _HOST + rb"):([0-9]{1,5}) HTTP/1\.[01]")
_GET = re.compile(rb"(GET|HEAD) http://(" + _HOST + rb")(?::([0-9]{1,5}))?(/[!-~]*) HTTP/1\.[01]")
_HEADER = re.compile(rb"[!-9;-~]+:[\t -~\x80-\xff]*")
_DROPPED = (b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"te", b"upgrade")


class Refused(ProtocolError):
    """What the client is told: a status of HTTP."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Request:
    """Where to connect, and what to send there first; ``tunnel``: the client is told, and nothing is sent."""

    def __init__(self, host: str, port: int, first: bytes, tunnel: bool) -> None:
        self.host, self.port, self.first, self.tunnel = host, port, first, tunnel


def parse(head: bytes) -> Request:
    """The request that a head, without its empty line, means; Refused."""
    line, *headers = head.split(b"\r\n")
    if any(not _HEADER.fullmatch(header) for header in headers):
        raise Refused("400 Bad Request")
    tunnel = _CONNECT.fullmatch(line)
    if tunnel is not None:
        return Request(tunnel[1].decode(), _port(tunnel[2]), b"", True)
    get = _GET.fullmatch(line)
    if get is None:
        raise Refused("405 Method Not Allowed" if b" " in line else "400 Bad Request")
    kept = [header for header in headers if header.partition(b":")[0].lower() not in _DROPPED]
    if not any(header.lower().startswith(b"host:") for header in kept):
        kept.insert(0, b"Host: " + get[2])
    first = b"\r\n".join([get[1] + b" " + get[4] + b" HTTP/1.1", *kept, b"Connection: close", b"", b""])
    return Request(get[2].decode(), _port(get[3] or b"80"), first, False)


def _port(text: bytes) -> int:
    port = int(text)
    if port not in PORTS:
        raise Refused("403 Port Not Allowed")
    return port


def allowed(address: str) -> bool:
    """Whether the proxy goes to an IPv4 address: not into this qube, not between qubes, not to a local link."""
    first, second, *_rest = (int(part) for part in address.split("."))
    return not (
        first in (0, 127) or first >= 224 or (first, second) == (169, 254) or (first == 10 and 137 <= second <= 139)
    )


def connect(request: Request) -> socket.socket:
    """A connection to where a request goes; Refused."""
    try:
        found = socket.getaddrinfo(request.host, request.port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        raise Refused("502 Name Not Found") from None
    addresses = [str(one[4][0]) for one in found]
    if not all(map(allowed, addresses)):
        raise Refused("403 Address Not Allowed")
    for address in addresses:
        try:
            # By the address that was judged: a second look-up could say something else.
            return socket.create_connection((address, request.port), SECONDS)
        except OSError:
            continue
    raise Refused("504 No Answer")


def read_head(fd: int) -> tuple[bytes, bytes]:
    """The head of a request, and what came with it already; Refused."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > MAX_HEAD or not readable([fd], SECONDS):
            raise Refused("408 Request Timeout")
        piece = os.read(fd, 4096)
        if not piece:
            raise Refused("400 Bad Request")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def carry(server: socket.socket, to_client: int, from_client: int) -> None:
    """Copy both ways until the server has no more; nothing is read that cannot be written."""
    reading: list[int] = [server.fileno(), from_client]
    while True:
        ready = readable(reading, IDLE_SECONDS)
        if not ready:
            return
        if server.fileno() in ready:
            data = server.recv(65536)
            if not data:
                return
            write(to_client, data)
        if from_client in ready:
            data = os.read(from_client, 65536)
            if data:
                server.sendall(data)
            else:
                reading.remove(from_client)
                server.shutdown(socket.SHUT_WR)


def write(fd: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main(argv: list[str]) -> int:
    """Serve one request."""
    try:
        head, rest = read_head(0)
        request = parse(head)
        with connect(request) as server:
            server.settimeout(IDLE_SECONDS)
            if request.tunnel:
                write(1, b"HTTP/1.1 200 Connection established\r\n\r\n")
                if rest:
                    server.sendall(rest)
            else:
                server.sendall(request.first)
            carry(server, 1, 0)
    except Refused as error:
        text = f"{error.status}\n".encode()
        write(1, f"HTTP/1.1 {error.status}\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
        return 1
    except OSError as error:
        sys.stderr.write(f"updates-proxy: {error}\n")
        return 1
    return 0
