"""Calls from this host into a qube: reach its link, start it if need be; disposables that live for one call."""

from __future__ import annotations

import socket
import sys
import time

from casemate.calls.request import connect
from casemate.cli.report import Report
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import (
    CasemateError,
    DisconnectedError,
    NotHaltedError,
    NotRunningError,
    NotStartedError,
    ProtocolError,
    printable,
)
from casemate.wire.names import qube_name
from casemate.wire.qrexec import DATA_STDOUT, EXEC_CMDLINE, Command, exec_message
from casemate.wire.upstream_paths import GROUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from casemate.settings import Settings


def open_call(
    qubes: Qubes,
    name: str,
    command: Command,
    autostart: bool,
    report: Report | None = None,
    kind: int = EXEC_CMDLINE,
) -> socket.socket:
    """The stream of a call that was sent to the qube. The daemon is only asked where the qube does not run.

    ``report`` hears of each step up to the connection; its end is the caller's to tell. ``kind`` JUST_EXEC is for a
    service that has no input and no output: the call ends when it was started.
    """
    warn_of_policy(qubes.transport.settings)
    try:
        return _open(qubes, name, exec_message(command.cmdline(), kind), autostart, report)
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


def _open(qubes: Qubes, name: str, message: bytes, autostart: bool, report: Report | None) -> socket.socket:
    if qubes.transport.settings.shared:
        raise CasemateError(
            f"Calls into qubes of this host are root's (sudo qvm-run {name} ...): the group {GROUP} has the Admin API"
        )
    path = qubes.transport.settings.link_address(qube_name(name))
    try:
        sock = connect(path)
    except DisconnectedError:
        if not autostart:
            qubes.call("admin.vm.CurrentState", "", name)  # a qube that does not exist is another error
            raise NotRunningError(f"{name} is not running") from None
        try:
            qubes.call("admin.vm.Start", "", name)
        except NotHaltedError:
            pass
        try:
            sock = connect(path)
        except DisconnectedError as error:
            raise DisconnectedError(f"{name} runs and cannot be reached: {error}") from None
        if report is not None:
            report.step("started")
    try:
        sock.sendall(message)
    except OSError as error:
        sock.close()
        raise DisconnectedError(f"{name} went away: {error.strerror}") from error
    if report is not None:
        report.step("connected")
    return sock


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


class Disposable:
    """A disposable of ``template`` (empty: the default one) for the length of a block; gives its name."""

    def __init__(self, qubes: Qubes, template: str) -> None:
        self._qubes = qubes
        self._template = template
        self._name = ""
        self._lease: socket.socket | None = None

    def __enter__(self) -> str:
        self._name = self._qubes.call("admin.vm.CreateDisposable", "", self._template or ADMIN)
        # The daemon ends it when this connection ends, so also when this tool is killed.
        try:
            self._lease = connect(str(self._qubes.transport.settings.lease_socket))
            self._lease.sendall(self._name.encode() + b"\n")
        except (DisconnectedError, OSError):
            self._end()
            raise
        return self._name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # The person has his answer: nothing is gained if he waits until the disposable is removed too.
        if self._lease is not None:
            self._lease.close()

    def _end(self) -> None:
        """End it without a lease."""
        try:
            self._qubes.call("admin.vm.Kill", "", self._name)
        except NotStartedError:
            self._qubes.call("admin.vm.Remove", "", self._name)
