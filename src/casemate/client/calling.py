"""Calls from this host into a qube: reach its link, start it if need be; disposables that live for one block."""

from __future__ import annotations

import socket

from casemate.calls.request import connect
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, DisconnectedError, NotHaltedError, NotRunningError, NotStartedError
from casemate.wire.names import qube_name
from casemate.wire.upstream_paths import GROUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


def open_stream(
    qubes: Qubes, name: str, message: bytes, autostart: bool, started: Callable[[], object] | None = None
) -> socket.socket:
    """The stream of a call for which ``message`` was sent to the qube's link.

    The daemon is asked only where the qube does not run: with ``autostart`` it is started then, and ``started`` is
    called. Raises NotFoundError, NotRunningError (without ``autostart``), what a start may raise, and
    DisconnectedError where the qube cannot be reached.
    """
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
        if started is not None:
            started()
    try:
        sock.sendall(message)
    except OSError as error:
        sock.close()
        raise DisconnectedError(f"{name} went away: {error.strerror}") from error
    return sock


def shell_line(command: str) -> bytes:
    """What the service qubes.VMShell must read first so that it runs ``command``.

    The shell that reads this line becomes one that does not read on: what follows it is the command's own input.
    """
    quoted = command.replace("'", "'\"'\"'")
    return f"exec \"${{BASH:-/bin/sh}}\" -c '{quoted}' || exit 127\n".encode("utf-8", "surrogateescape")


class Disposable:
    """A disposable of ``template`` (empty: the default one) for the length of a block; gives its name."""

    def __init__(self, qubes: Qubes, template: str) -> None:
        self._qubes = qubes
        self._template = template
        self._name = ""
        self._lease: socket.socket | None = None

    def __enter__(self) -> str:
        self._name = self._qubes.call("admin.vm.CreateDisposable", "", self._template or ADMIN)
        # The daemon ends it when this connection ends, so also when this program is killed.
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
