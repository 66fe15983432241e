"""A program: has borg's modules loaded, and forks for each command. Runs under the Python that borg is installed for.

``warm_borg.py`` starts it as ``python3 -I borg_server.py FD`` and speaks with it over that socket (SOCK_SEQPACKET):

    → {"words": [...], "env": {...}} as JSON, with descriptors: standard input, output, error, the passphrase
    ← the child's process id, with a descriptor of the process (pidfd)
    ← its exit status, when it has ended; negative: the signal

It imports nothing of ours: that Python does not have it. borg tests itself at the beginning of each run; here that is
done once, by the same loaded code that each child goes on with. Source: borg's entry point ``borg.archiver:main``.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import traceback

_PR_SET_PDEATHSIG = 1
_MOST = 1 << 20
_ABOVE = 64
"""Descriptors are moved beyond here before each gets its place."""
_PASSPHRASE = 3
_ERROR = 2


def main() -> int:
    """Serve until the other end of the socket is closed."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    import logging

    import borg.archiver  # type: ignore[import-not-found]
    from borg.selftest import selftest  # type: ignore[import-not-found]

    selftest(
        logging.getLogger("borg")
    )  # ends this program when something is wrong; then borg is started anew, and says so
    while True:
        data, descriptors, _flags, _address = socket.recv_fds(sock, _MOST, 4)
        if not data:
            return 0
        order = json.loads(data)
        parent, child = os.getpid(), os.fork()
        if not child:
            sock.close()
            try:
                _become(order, descriptors, parent)
                status = borg.archiver.main()
            except Exception:
                traceback.print_exc()
                status = _ERROR  # not Python's own 1: that is borg's word for a warning, after which the work is done
            sys.exit(status)
        for fd in descriptors:
            os.close(fd)
        process = os.pidfd_open(child)
        socket.send_fds(sock, [b"%d" % child], [process])
        os.close(process)
        sock.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(order: dict[str, object], descriptors: list[int], parent: int) -> None:
    """Make this child what a borg of its own would be: killed with us, its own session, descriptors and environment."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.setsid()
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, _ABOVE) for fd in descriptors]
    for fd, place in zip(moved, (0, 1, 2, _PASSPHRASE), strict=True):
        os.dup2(fd, place)
    os.closerange(_PASSPHRASE + 1, 2 * _ABOVE)
    # Python's objects for these remember what the descriptors were before. borg wraps them once more and drops the
    # wrapper, which would close what is in it; hence the second name of each, as Python has it too.
    sys.stdin = sys.__stdin__ = open(0)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w")  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w")  # type: ignore[misc]  # noqa: SIM115
    os.environ.clear()
    os.environ.update(order["env"])  # type: ignore[call-overload]
    os.environ |= {"BORG_PASSPHRASE_FD": str(_PASSPHRASE), "BORG_SELFTEST": "disabled"}
    sys.argv[:] = ["borg", *order["words"]]  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
