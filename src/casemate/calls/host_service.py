"""Serves a call of a qube with a program of this host: ``python -m casemate.calls.host_service FD PROGRAM [ARG]``."""

from __future__ import annotations

import os
import signal
import socket
import sys

from casemate.calls.children import exit_status
from casemate.calls.spawn import PATH, spawn
from casemate.calls.spliced import SplicedCall
from casemate.streams.loop import READ, Loop
from casemate.streams.socket_stream import SocketStream

_KEPT = ("QREXEC_", "LANG")


def main(argv: list[str]) -> int:
    """Run the program on the call stream; 0 whatever the program's status, which travels in the call."""
    fd, program = int(argv[1]), argv[2:]
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    environment = {key: value for key, value in os.environ.items() if key.startswith(_KEPT)} | {"PATH": PATH}
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    loop = Loop()
    # What a service of the host writes to stderr is for the host's log, never for a qube.
    pid, stdin, stdout, _none = spawn(program, environment, None, with_stderr=False)
    call = SplicedCall.of_program(loop, SocketStream(loop, sock), stdin, stdout, None, lambda _call: loop.stop())
    pidfd = os.pidfd_open(pid)

    def reaped(mask: int) -> None:
        loop.unwatch(pidfd)
        _pid, status = os.waitpid(pid, 0)
        call.exited(exit_status(status))

    loop.watch(pidfd, READ, reaped)
    loop.run()
    while loop.busy():
        loop.once(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
