"""Another implementation of qrexec over vchan-socket: blocking sockets and threads, written from the wire alone.

It behaves as the programs it stands for: listeners stay at their paths, connecting is retried, header and body are
written one after the other. It imports nothing of ours.

One file although it is long: it imports nothing of ours, and stands alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

STDIN, STDOUT, STDERR, EXIT = 0x190, 0x191, 0x192, 0x193
EXEC, JUST_EXEC, CONNECT, REFUSED = 0x200, 0x201, 0x202, 0x203
TRIGGER2, TERMINATED, TRIGGER3, TRIGGER4, HELLO = 0x210, 0x211, 0x212, 0x213, 0x300


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += more
    return data


def receive(sock: socket.socket) -> tuple[int, bytes]:
    kind, length = struct.unpack("<II", exactly(sock, 8))
    return kind, exactly(sock, length)


def send(sock: socket.socket, kind: int, body: bytes = b"") -> None:
    sock.sendall(struct.pack("<II", kind, len(body)))
    if body:
        sock.sendall(body)


def exec_body(domain: int, port: int, cmdline: bytes) -> bytes:
    return struct.pack("<II", domain, port) + cmdline + b"\0"


def connected(path: Path, seconds: float = 30) -> socket.socket:
    """Connect as upstream's client end: again and again until somebody is there."""
    end = time.monotonic() + seconds
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            sock.settimeout(seconds)
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.0005)


class Vchan:
    """The directory of the sockets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, server: int, client: int, port: int) -> Path:
        return self.directory / f"vchan.{server}.{client}.{port}.sock"

    def serve(self, server: int, client: int, port: int) -> socket.socket:
        path = self.path(server, client, port)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(path))
        sock.listen(1)
        sock.settimeout(60)
        return sock


class Result:
    """What a caller has got."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""
        self.status: int | None = None
        self.kinds: list[tuple[int, int]] = []
        self.longest = 0


def caller(sock: socket.socket, stdin: bytes, version: int = 4, hold_stdin: bool = False) -> Result:
    """The caller's end of the data phase, from its handshake."""
    sock.settimeout(60)
    send(sock, HELLO, struct.pack("<I", version))
    kind, body = receive(sock)
    assert (kind, len(body)) == (HELLO, 4), (kind, body)
    most = 65536 if min(struct.unpack("<I", body)[0], version) >= 3 else 4096

    def feed() -> None:
        with contextlib.suppress(OSError):
            for at in range(0, len(stdin), most):
                send(sock, STDIN, stdin[at : at + most])
            if not hold_stdin:
                send(sock, STDIN)

    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    found = Result()
    while found.status is None:
        kind, body = receive(sock)
        found.kinds.append((kind, len(body)))
        found.longest = max(found.longest, len(body))
        assert len(body) <= most
        if kind == STDOUT:
            found.stdout += body
        elif kind == STDERR:
            found.stderr += body
        elif kind == EXIT:
            (found.status,) = struct.unpack("<i", body[:4])
        else:
            raise AssertionError(hex(kind))
    sock.close()
    return found


def service(sock: socket.socket, argv: list[str], version: int = 4) -> None:
    """The executing end: runs a program; stdin is read to its end first, as a test needs no more."""
    sock.settimeout(60)
    send(sock, HELLO, struct.pack("<I", version))
    kind, body = receive(sock)
    assert (kind, len(body)) == (HELLO, 4)
    most = 65536 if min(struct.unpack("<I", body)[0], version) >= 3 else 4096
    data = b""
    while True:
        kind, body = receive(sock)
        assert kind == STDIN and len(body) <= most, (kind, len(body))
        if not body:
            break
        data += body
    done = subprocess.run(argv, input=data, capture_output=True)
    for kind, out in ((STDOUT, done.stdout), (STDERR, done.stderr)):
        for at in range(0, len(out), most):
            send(sock, kind, out[at : at + most])
        send(sock, kind)
    send(sock, EXIT, struct.pack("<i", done.returncode))
    sock.close()


class Agent:
    """An agent that answers every service ``NAME`` by a command; requests of its own programs are ``call``."""

    def __init__(
        self, vchan: Vchan, domain: int, version: int = 4, argv: Callable[[str], list[str]] | None = None
    ) -> None:
        self.vchan = vchan
        self.domain = domain
        self.version = version
        self.argv = argv or (lambda text: ["/bin/sh", "-c", f"cat; echo '{text}' >&2; exit 3"])
        self.received: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()
        self._answers: dict[bytes, tuple[threading.Event, list[tuple[int, int] | None]]] = {}
        self._count = 0
        self.listener = vchan.serve(domain, 0, 512)

    def accept(self) -> None:
        """Wait for the daemon and shake hands."""
        self.control, _ = self.listener.accept()
        self.control.settimeout(60)
        send(self.control, HELLO, struct.pack("<I", self.version))
        kind, body = receive(self.control)
        assert (kind, body) == (HELLO, struct.pack("<I", self.version)), (kind, body)

    def start(self) -> None:
        """Accept, then serve in a thread."""
        self.accept()
        threading.Thread(target=self._serve, daemon=True).start()

    def tell(self, kind: int, body: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            send(self.control, kind, body)

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.control.settimeout(None)
            while True:
                kind, body = receive(self.control)
                self.received.append((kind, body))
                if kind in (EXEC, JUST_EXEC):
                    threading.Thread(target=self._execute, args=(kind, body), daemon=True).start()
                elif kind == CONNECT:
                    event, place = self._answers[body[8:]]
                    place.append(struct.unpack("<II", body[:8]))
                    event.set()
                elif kind == REFUSED:
                    event, place = self._answers[body]
                    place.append(None)
                    event.set()

    def _execute(self, kind: int, body: bytes) -> None:
        domain, port = struct.unpack("<II", body[:8])
        assert body.endswith(b"\0") and body.count(b"\0", 8) == 1
        with contextlib.suppress(OSError, EOFError), connected(self.vchan.path(domain, self.domain, port)) as sock:
            service(sock, self.argv(body[8:-1].decode()))
        self.tell(TERMINATED, body[:8])

    def close(self) -> None:
        for sock in (self.listener, getattr(self, "control", None)):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    # -- programs of the domain

    def trigger(self, target: str, call: str, ident: bytes = b"", source: str = "") -> bytes:
        """Send a request; its id."""
        if not ident:
            with self._lock:
                self._count += 1
                ident = b"SOCKET%d" % self._count
        ident = ident.ljust(32, b"\0")
        self._answers[ident] = (threading.Event(), [])
        name = call.encode() + b"\0"
        if self.version == 2:
            self.tell(TRIGGER2, name.ljust(64, b"\0") + target.encode().ljust(32, b"\0") + ident)
        elif self.version == 3:
            self.tell(TRIGGER3, target.encode().ljust(64, b"\0") + ident + name)
        else:
            self.tell(TRIGGER4, source.encode().ljust(64, b"\0") + target.encode().ljust(64, b"\0") + ident + name)
        return ident

    def answer(self, ident: bytes, seconds: float = 60) -> tuple[int, int] | None:
        event, place = self._answers[ident]
        assert event.wait(seconds), "no answer"
        return place[0]

    def call(self, target: str, call: str, stdin: bytes = b"", version: int = 4) -> Result:
        """A call of a program in the domain; status 126 when it is refused."""
        place = self.answer(self.trigger(target, call))
        if place is None:
            found = Result()
            found.status = 126
            return found
        domain, port = place
        with self.vchan.serve(self.domain, domain, port) as listener:
            sock, _ = listener.accept()
        try:
            return caller(sock, stdin, version)
        finally:
            self.tell(TERMINATED, struct.pack("<II", domain, port))


class Client:
    """A client of a daemon on the host."""

    def __init__(self, vchan: Vchan, socket_path: Path) -> None:
        self.vchan = vchan
        self.path = socket_path

    def greeted(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(60)
        sock.connect(str(self.path))
        assert receive(sock) == (HELLO, struct.pack("<I", 3))
        send(sock, HELLO, struct.pack("<I", 3))
        return sock

    def call(self, cmdline: str, stdin: bytes = b"", kind: int = EXEC, version: int = 4) -> Result:
        """A call from the host, until the daemon has said that it ended."""
        with self.greeted() as sock:
            send(sock, kind, exec_body(0, 0, cmdline.encode()))
            got, body = receive(sock)
            assert got == kind and len(body) == 8, (got, body)
            domain, port = struct.unpack("<II", body)
            with self.vchan.serve(0, domain, port) as listener:
                peer, _ = listener.accept()
            found = caller(peer, stdin, version)
            assert sock.recv(1) == b"", "the daemon says only that the call has ended"
            return found


class Daemon:
    """The daemon of one domain, towards its agent only."""

    def __init__(self, vchan: Vchan, domain: int, version: int | None = None) -> None:
        self.vchan = vchan
        self.domain = domain
        self._port = 513
        self.control = connected(vchan.path(domain, 0, 512))
        kind, body = receive(self.control)
        assert (kind, len(body)) == (HELLO, 4)
        self.agent_version = struct.unpack("<I", body)[0]
        send(self.control, HELLO, body if version is None else struct.pack("<I", version))

    def begin(self, cmdline: bytes, kind: int = EXEC) -> tuple[int, socket.socket]:
        """Have the agent serve a call of the host: (port, the listener)."""
        port, self._port = self._port, self._port + 1
        listener = self.vchan.serve(0, self.domain, port)
        send(self.control, kind, exec_body(0, port, cmdline))
        return port, listener

    def call(self, cmdline: str, stdin: bytes = b"", kind: int = EXEC, version: int = 4) -> Result:
        port, listener = self.begin(cmdline.encode(), kind)
        with listener:
            peer, _ = listener.accept()
        found = caller(peer, stdin, version)
        assert receive(self.control) == (TERMINATED, struct.pack("<II", 0, port))
        return found

    def close(self) -> None:
        self.control.close()


class ClientVm:
    """A program in a domain that asks the agent there for a call."""

    def __init__(self, vchan: Vchan, domain: int, agent_socket: Path) -> None:
        self.vchan = vchan
        self.domain = domain
        self.path = agent_socket

    def asked(self, target: str, call: str, source: str = "") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(60)
        sock.connect(str(self.path))
        fields = source.encode().ljust(64, b"\0") + target.encode().ljust(64, b"\0") + b"SOCKET".ljust(32, b"\0")
        with contextlib.suppress(BrokenPipeError):
            send(sock, TRIGGER4, fields + call.encode() + b"\0")
        return sock

    def call(self, target: str, call: str, stdin: bytes = b"") -> Result:
        with self.asked(target, call) as sock:
            try:
                domain, port = struct.unpack("<II", exactly(sock, 8))
            except EOFError:
                found = Result()
                found.status = 126
                return found
            with self.vchan.serve(self.domain, domain, port) as listener:
                peer, _ = listener.accept()
            return caller(peer, stdin)


class PolicyDaemon:
    """Answers at a socket as ``rule(request)`` says; ``requests`` are those that came."""

    def __init__(self, path: Path, rule: Callable[[dict[str, str]], str]) -> None:
        self.requests: list[dict[str, str]] = []
        self._rule = rule
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        self._sock.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            data = b""
            while not data.endswith(b"\n\n"):
                more = sock.recv(65536)
                if not more:
                    return
                data += more
            request = dict(line.split("=", 1) for line in data.decode().strip().split("\n"))
            self.requests.append(request)
            sock.sendall(self._rule(request).encode())

    def close(self) -> None:
        self._sock.close()


class AdminApi:
    """Answers methods at a socket; ``calls`` are those that came, as (method, destination)."""

    def __init__(self, path: Path, carry_out: Callable[[str, str], bytes]) -> None:
        self.calls: list[tuple[str, str]] = []
        self._carry_out = carry_out
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        self._sock.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                with sock:
                    data = b""
                    while more := sock.recv(4096):
                        data += more
                    method, source, kind, dest = data.partition(b"\0")[0].decode().split(" ")
                    assert (source, kind) == ("dom0", "name")
                    self.calls.append((method, dest))
                    sock.sendall(self._carry_out(method, dest))

    def close(self) -> None:
        self._sock.close()


def allow(request: dict[str, str], target: str = "", user: str = "DEFAULT", autostart: bool = False) -> str:
    target = target or request["intended_target"]
    return (
        f"result=allow\nuser={user}\ntarget={target}\nrequested_target={request['intended_target']}\n"
        f"autostart={autostart}\n"
    )


def descriptors(pid: int) -> int:
    """How many a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))
