"""Calls of tools into a qube: as ``client.calling``, and told to whoever watches calls."""

from __future__ import annotations

import socket
import sys
import time

from casemate.cli.progress import Waiting
from casemate.cli.report import Report
from casemate.client.calling import open_stream
from casemate.client.qubes import Qubes
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import (
    CasemateError,
    DisconnectedError,
    NotRunningError,
    ProtocolError,
    printable,
)
from casemate.wire.qrexec import DATA_STDOUT, EXEC_CMDLINE, Command, exec_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.settings import Settings


def open_call(
    qubes: Qubes,
    name: str,
    command: Command,
    autostart: bool,
    report: Report | None = None,
    kind: int = EXEC_CMDLINE,
    quiet: bool = False,
) -> socket.socket:
    """The stream of a call that was sent to the qube. The daemon is only asked where the qube does not run.

    ``report`` hears of each step up to the connection; its end is the caller's to tell. ``kind`` JUST_EXEC is for a
    service that has no input and no output: the call ends when it was started. ``quiet``: do not
    show on the terminal that a start takes a while.
    """
    warn_of_policy(qubes.transport.settings)
    try:
        started = (lambda: report.step("started")) if report is not None else None
        with Waiting(f"starting {name}", quiet):  # shown only after a second: a qube that runs is reached at once
            sock = open_stream(qubes, name, exec_message(command.cmdline(), kind), autostart, started)
        if report is not None:
            report.step("connected")
        return sock
    except CasemateError as error:
        if report is not None:
            cause = "unreachable" if isinstance(error, DisconnectedError) else "start failed"
            report.refused("not running" if isinstance(error, NotRunningError) else cause, error)
        raise


def warn_of_policy(settings: Settings) -> None:
    """Say on stderr that the policy is broken, where it is. The policy does not decide about calls of this host, but
    what the called service does in turn may need a call of its qube, and nobody in a qube is told why it is denied."""
    try:
        why = settings.policy_alarm.read_text("utf-8", "replace")[:2000].strip()
    except OSError:
        return  # nothing is wrong, or it is not ours to read
    sys.stderr.write(f"warning: the policy is broken, so every call of a qube is denied: {printable(why, 2000)}\n")


def answer_of(sock: socket.socket, service: str, most: int, within: float) -> bytes:
    """What a service writes to its standard output, without any input: at most ``most`` bytes, ``within`` seconds.

    ``sock`` is the stream of its call, and is closed. DisconnectedError when the service fails, says more, or is late.
    """
    side, output, deadline = CallerSide(), bytearray(), time.monotonic() + within
    with sock:
        try:
            sock.sendall(b"".join(side.stdin_eof()))
            while side.exit_code is None:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                data = sock.recv(4096)
                if not data:
                    raise DisconnectedError(f"the qube went away while it ran {service}")
                for kind, piece in side.feed(data):
                    if kind == DATA_STDOUT:
                        output += piece
                if len(output) > most:
                    raise DisconnectedError(f"the answer of {service} is longer than {most} bytes")
        except TimeoutError:
            raise DisconnectedError(f"no answer of {service} within {within:g} s") from None
        except ProtocolError as error:
            raise DisconnectedError(f"{service}: {error}") from None
        except OSError as error:
            raise DisconnectedError(f"{service}: {error.strerror}") from None
    if side.exit_code:
        raise DisconnectedError(f"{service} ended with status {side.exit_code}")
    return bytes(output)
