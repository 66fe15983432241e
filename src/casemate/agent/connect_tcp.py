"""qvm-connect-tcp: a local TCP port whose connections go to a port of another qube, by ``qubes.ConnectTCP``."""

from __future__ import annotations

import os
import signal
import socket
import sys

from casemate.calls.caller import run_call
from casemate.calls.request import SOCKET, connect, request
from casemate.streams.ready import readable
from casemate.wire.errors import CasemateError
from casemate.wire.names import number

SERVICE = "qubes.ConnectTCP"
MAX_CONNECTIONS = 128
USAGE = """\
usage: qvm-connect-tcp [-f] [LOCALPORT:][QUBE]:PORT

Listens on LOCALPORT (default: PORT) of the loopback address and takes each connection to PORT of QUBE (default: what
the policy says). Goes to the background once it listens; -f, --foreground stays.
"""


def main(argv: list[str]) -> int:
    """0 once it listens in the background; 1 when the port cannot be had; 2 for words that are wrong."""
    words = argv[1:]
    foreground = words[:1] in (["-f"], ["--foreground"])
    if foreground:
        del words[0]
    try:
        local, target, port = parse(words)
    except (CasemateError, ValueError):
        sys.stderr.write(USAGE)
        return 2
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", local))
        listener.listen(64)
    except OSError as error:
        sys.stderr.write(f"qvm-connect-tcp: port {local}: {error.strerror}\n")
        return 1
    sys.stderr.write(f"localhost:{local} leads to port {port} of {target}\n")
    if not foreground and os.fork():
        return 0
    if not foreground:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
    serve(listener, target, f"{SERVICE}+{port}")
    return 0


def parse(words: list[str]) -> tuple[int, str, int]:
    """Local port, qube and its port; ValueError or CasemateError for anything else."""
    (text,) = words
    parts = text.split(":")
    if len(parts) == 2:
        parts.insert(0, "")
    local, target, remote = parts
    port = number(remote, "port", 1, 65535)
    return number(local, "port", 1, 65535) if local else port, target or "@default", port


def serve(listener: socket.socket, target: str, call: str, idle: float | None = None) -> None:
    """A child for each connection: one that hangs hangs alone. With ``idle`` it ends when nobody has connected for so
    many seconds and no connection is left."""
    children: set[int] = set()
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    while True:
        asked = readable([listener], idle)
        if not asked and not children:
            return
        while children:
            pid, _status = os.waitpid(-1, os.WNOHANG if len(children) < MAX_CONNECTIONS else 0)
            if pid == 0:
                break
            children.discard(pid)
        if not asked:
            continue
        connection, _address = listener.accept()
        pid = os.fork()
        if pid:
            children.add(pid)
            connection.close()
            continue
        listener.close()
        os._exit(_serve_connection(connection, target, call))


def _serve_connection(connection: socket.socket, target: str, call: str) -> int:
    """Make a call whose data is what goes over a connection; its exit status."""
    try:
        sock = connect(os.environ.get("QREXEC_AGENT_SOCKET") or SOCKET)
        request(sock, target, call)
        return run_call(sock, connection.fileno(), os.dup(connection.fileno()), 2)
    except (CasemateError, OSError) as error:
        sys.stderr.write(f"{call}: {error}\n")
        sys.stderr.flush()
        return 1
