"""Servers of the tests' internet and of the host in it: ``tcp:[ADDRESS:]PORT``,
``udp:ADDRESS:PORT``, ``dns:ADDRESS:ZONE-FILE``, ``http:ADDRESS:DIRECTORY``.

TCP and UDP answer with the address that the client has. The name server reads its zone at each query: by name a list of
addresses, or an object with ``cname`` or ``a``, a ``ttl``, and ``extra``, records of other names as (name, address).
"""

from __future__ import annotations

import functools
import json
import socket
import struct
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from casemate.wire.dns import parse_query


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address: str, port: int) -> None:
    listener = socket.socket(_family(address))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(64)

    def serve() -> None:
        while True:
            connection, client = listener.accept()
            threading.Thread(target=echo, args=(connection, client[0]), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()


def echo(connection: socket.socket, client: str) -> None:
    """Say who the client is, then give back what it sends."""
    try:
        with connection:
            connection.sendall(f"hello {client}\n".encode())
            while data := connection.recv(65536):
                connection.sendall(data)
    except OSError:
        pass


def udp(address: str, port: int) -> None:
    """Bound to one address: else answers would come from another one."""
    server = socket.socket(_family(address), socket.SOCK_DGRAM)
    server.bind((address, port))

    def serve() -> None:
        while True:
            _data, client = server.recvfrom(65536)
            server.sendto(f"hello {client[0]}\n".encode(), client)

    threading.Thread(target=serve, daemon=True).start()


def _label(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".") if part) + b"\0"


def answer(data: bytes, zone: dict[str, object], stream: bool) -> bytes:
    """The answer to a query; by UDP one of more than 512 bytes is cut, if the query does not say that there is room."""
    asked = parse_query(data)
    stream = stream or data[11] > 0
    records: list[bytes] = []

    def add(owner: str, kind: int, ttl: int, body: bytes) -> None:
        records.append(_label(owner) + struct.pack("!HHIH", kind, 1, ttl, len(body)) + body)

    name, known = asked.name, False
    for _step in range(20):
        found = zone.get(name)
        if found is None:
            break
        known = True
        entry = found if isinstance(found, dict) else {"a": found}
        ttl = int(entry.get("ttl", 60))
        for owner, address in entry.get("extra", ()):
            add(owner, 1, ttl, socket.inet_aton(address))
        if "cname" not in entry:
            kind, family = (28, socket.AF_INET6) if asked.kind == 28 else (1, socket.AF_INET)
            for address in entry["a"]:
                if asked.kind == kind and _family(address) == family:
                    add(name, kind, ttl, socket.inet_pton(family, address))
            break
        add(name, 5, ttl, _label(entry["cname"]))
        name = entry["cname"]
    whole = b"".join(records)
    cut = not stream and len(whole) > 400
    flags = 0x8180 | (0 if known else 3) | (0x0200 if cut else 0)
    count = 0 if cut else len(records)
    return data[:2] + struct.pack("!HHHHH", flags, 1, count, 0, 0) + data[12 : asked.end] + (b"" if cut else whole)


def http(address: str, directory: str) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=directory)
    threading.Thread(target=ThreadingHTTPServer((address, 80), handler).serve_forever, daemon=True).start()


def dns(address: str, path: str) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))
    listener = socket.socket()
    listener.bind((address, 53))
    listener.listen(16)

    def zone() -> dict[str, object]:
        with open(path) as file:
            found: dict[str, object] = json.load(file)
            return found

    def datagrams() -> None:
        while True:
            data, client = server.recvfrom(4096)
            server.sendto(answer(data, zone(), False), client)

    def streams() -> None:
        while True:
            connection, _client = listener.accept()
            with connection:
                size = int.from_bytes(connection.recv(2), "big")
                told = answer(connection.recv(size), zone(), True)
                connection.sendall(len(told).to_bytes(2, "big") + told)

    for target in (datagrams, streams):
        threading.Thread(target=target, daemon=True).start()


if __name__ == "__main__":
    for word in sys.argv[1:]:
        kind, _, value = word.partition(":")
        address, _, rest = value.rpartition(":")
        if kind == "http":
            http(address, rest)
        elif kind == "dns":
            dns(address, rest)
        elif kind == "udp":
            udp(address, int(rest))
        else:
            tcp(address or "0.0.0.0", int(rest))
    print("listening", flush=True)
    threading.Event().wait()
