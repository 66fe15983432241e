"""Asks for a call: connects to a socket of calls and, in a qube, waits for the answer."""

from __future__ import annotations

import os
import socket

from casemate.streams.exactly import exactly
from casemate.wire import qrexec
from casemate.wire.errors import DisconnectedError

SOCKET = "/run/qubes/qrexec-agent.sock"
"""In a qube: where its agent takes requests for calls."""


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """Connect to a socket of calls; DisconnectedError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise DisconnectedError(error.strerror or "cannot connect") from error
    return sock


def request(sock: socket.socket, target: str, call: str) -> None:
    """In a qube: ask for a call and wait for the answer; CallRefusedError when it is no."""
    try:
        sock.sendall(qrexec.trigger4(target, call))
        kind, length = qrexec.HEADER.unpack(exactly(sock, qrexec.HEADER.size))
        body = exactly(sock, qrexec.ANSWERS((kind, length)))
    except EOFError:
        raise DisconnectedError("The connection was closed before the request was answered") from None
    except OSError as error:
        raise DisconnectedError(error.strerror or "connection lost") from error
    qrexec.check_answer(kind, body)
