"""Run inside a guest, from standard input: tries to reach places and tells which answered, as JSON.

Its last line calls ``main`` with a list of (name, protocol, host, port).
"""

import json
import os
import socket
import struct
import sys
import threading

SECONDS = 6.0


def tcp(host, port):
    with socket.create_connection((host, port), SECONDS) as connection:
        connection.settimeout(SECONDS)
        return connection.recv(100)


def to_everybody(host):
    return host.startswith("ff")


def udp(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.settimeout(SECONDS / 3)
        if to_everybody(host):
            # Whoever answers does so from an address of its own, which a connected socket would not take; and our own
            # server must not hear us.
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        else:
            connection.connect((host, port))
        for _attempt in range(3):
            if to_everybody(host):
                connection.sendto(b"hello", (host, port))
            else:
                connection.send(b"hello")
            try:
                return connection.recv(100)
            except TimeoutError:
                continue
    return b""


def icmp(host, _port):
    six = ":" in host
    family, protocol, kind, answer = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129) if six else (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0)
    )
    number = int.from_bytes(os.urandom(2), "big")
    body = struct.pack("!BBHHH", kind, 0, 0, number, 1) + b"ping"
    words = struct.unpack(f"!{len(body) // 2}H", body)
    total = sum(words)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    body = body[:2] + struct.pack("!H", total) + body[4:]
    with socket.socket(family, socket.SOCK_RAW, protocol) as connection:
        connection.settimeout(SECONDS / 3)
        if to_everybody(host):
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        for _attempt in range(3):
            connection.sendto(body, (host, 0))
            try:
                while True:
                    data, (source, *_rest) = connection.recvfrom(1000)
                    head = 0 if six else (data[0] & 15) * 4
                    answers = source == host or to_everybody(host)
                    if data[head] == answer and answers and data[head + 4 : head + 6] == body[4:6]:
                        return b"pong"
            except TimeoutError:
                continue
    return b""


def main(places):
    found = {}

    def look(name, protocol, host, port):
        try:
            found[name] = bool({"tcp": tcp, "udp": udp, "icmp": icmp}[protocol](host, port))
        except OSError:
            found[name] = False

    threads = [threading.Thread(target=look, args=place) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(found, sys.stdout)
