"""A qube without a machine: serves qrexec calls with real programs, as a process of its own.

``python -m tests.fakes.qube LINK AGENT [POLICY ...]`` listens like a link (calls of the host) and like an agent (calls
of programs in the qube, answered by itself in the name of ``work``). ``refuse:SERVICE[+ARG]`` refuses a service;
``vanish`` closes every call after its first bytes. ``ready`` is printed once it listens.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from casemate.agent.service import find_service
from casemate.calls.service import ServiceCall, refuse
from casemate.calls.spawn import spawn
from casemate.streams.listener import FirstMessage, Listener, listen
from casemate.streams.loop import READ, Loop
from casemate.streams.socket_stream import SocketStream
from casemate.wire.errors import CasemateError
from casemate.wire.qrexec import (
    EXIT_FAILED,
    GUEST_REQUESTS,
    HOST_REQUESTS,
    Command,
    parse_command,
    parse_exec,
    parse_trigger4,
    service_connect,
    service_refused,
)


class Qube:
    def __init__(self, link: str, agent: str, policy: list[str]) -> None:
        self.loop = Loop()
        self.policy = policy
        Listener(self.loop, listen(link, 0o600), lambda s: self._first(s, HOST_REQUESTS, self._host))
        Listener(self.loop, listen(agent, 0o600), lambda s: self._first(s, GUEST_REQUESTS, self._guest))

    def _first(self, sock: socket.socket, table, handler) -> None:  # type: ignore[no-untyped-def]
        FirstMessage(self.loop, sock, table, handler)

    def _host(self, sock: socket.socket, kind: int, body: bytes) -> None:
        self._serve(sock, parse_command(parse_exec(body)))

    def _guest(self, sock: socket.socket, kind: int, body: bytes) -> None:
        trigger = parse_trigger4(body)
        if f"refuse:{trigger.service}" in self.policy or f"refuse:{trigger.call}" in self.policy:
            sock.send(service_refused(trigger.ident))
            sock.close()
            return
        sock.send(service_connect(trigger.ident))
        target = trigger.target.removeprefix("@")
        kind_ = "keyword" if trigger.target.startswith("@") else "name"
        self._serve(sock, Command("DEFAULT", trigger.service, trigger.argument, "work", kind_, target))

    def _serve(self, sock: socket.socket, command: Command) -> None:
        if "vanish" in self.policy:
            sock.close()
            return
        stream = SocketStream(self.loop, sock)
        try:
            found = find_service(command, "user")
        except CasemateError as error:
            refuse(stream, getattr(error, "exit_status", EXIT_FAILED), f"{error}\n")
            return
        keep = {key: os.environ[key] for key in ("HOME", "PYTHONPATH") if key in os.environ}
        environment = {**keep, **found.environment, "ASKED_USER": found.user}
        pid, stdin, stdout, stderr = spawn(found.argv, environment, None)
        call = ServiceCall.of_program(self.loop, stream, stdin, stdout, stderr)
        pidfd = os.pidfd_open(pid)

        def reaped(mask: int) -> None:
            self.loop.unwatch(pidfd)
            os.close(pidfd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            call.exited(code if code >= 0 else 128 - code)

        self.loop.watch(pidfd, READ, reaped)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    qube = Qube(sys.argv[1], sys.argv[2], sys.argv[3:])
    print("ready", flush=True)
    qube.loop.run()
