"""Sockets that systemd made before it started the daemon (socket activation).

systemd passes descriptors from 3 on, their number in ``LISTEN_FDS``, and in ``LISTEN_PID`` whom they are for. A socket
is known by the path that it is bound to, so units need no names for them. (sd_listen_fds(3))
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from casemate.wire.errors import ValueInvalidError

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 16
"""More sockets than any unit of ours has."""


def inherited(environ: MutableMapping[str, str]) -> dict[Path, socket.socket]:
    """Listening unix sockets by their paths; empty where systemd has passed none to this process.

    The variables are taken out of ``environ``: programs that we start are not meant. ValueInvalidError for a descriptor
    that is no listening unix socket with a path, as then the unit is wrong.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return {}
    if not count.isdecimal() or not 0 < int(count) <= _MOST:
        raise ValueInvalidError(f"LISTEN_FDS must be a number from 1 to {_MOST}, not {count!r}")
    found: dict[Path, socket.socket] = {}
    for fd in range(_FIRST, _FIRST + int(count)):
        try:
            os.set_inheritable(fd, False)  # systemd leaves them open across exec
            one = socket.socket(fileno=fd)
            fit = one.family == socket.AF_UNIX and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise ValueInvalidError(f"descriptor {fd} of LISTEN_FDS is no socket: {error.strerror}") from None
        if not fit or not isinstance(path := one.getsockname(), str) or not path:
            raise ValueInvalidError(f"descriptor {fd} of LISTEN_FDS is no listening unix socket with a path")
        one.setblocking(False)
        # /var/run is a link to /run, and a unit may name either.
        found[Path(path).parent.resolve() / Path(path).name] = one
    return found
