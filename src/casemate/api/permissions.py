"""Who may call what: asked before anything is looked up, answered with the one denial."""

from __future__ import annotations

import os
import socket
import struct

from casemate.wire.admin import ADMIN, Request
from casemate.wire.errors import PermissionDeniedError

_CREDENTIALS = struct.Struct("3i")


def check_call(request: Request) -> None:
    """On the host's own socket only dom0 calls; calls of qubes come through qrexec and its policy, not here."""
    if request.source != ADMIN:
        raise PermissionDeniedError


def check_peer(connection: socket.socket) -> None:
    """Only the user that the daemon runs as, and root, may connect; the kernel says who it is."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    if uid not in (0, os.geteuid()):
        raise PermissionDeniedError
