"""Who may connect and call on the host's own sockets; checked before anything is looked up.

Each refusal is the same PermissionDeniedError, so that it tells nothing.
"""

from __future__ import annotations

import os
import socket
import struct

from casemate.wire.admin import ADMIN, Request
from casemate.wire.errors import PermissionDeniedError

_CREDENTIALS = struct.Struct("3i")
"""struct ucred of SO_PEERCRED (unix(7)): process, user, group."""


def check_call(request: Request) -> None:
    """Refuse a call for another source than dom0: qubes call through qrexec and its policy (``guest_calls.py``)."""
    if request.source != ADMIN:
        raise PermissionDeniedError


def check_peer(connection: socket.socket) -> None:
    """Refuse a peer that is neither root nor the user that the daemon runs as; the kernel tells which user it is."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    if uid not in (0, os.geteuid()):
        raise PermissionDeniedError
