"""Tells who waits for a qube what for, once it has been silent for a while; ends a call that has waited too long."""

from __future__ import annotations

import socket
import sys
import time

from casemate.calls.caller import SILENCE_SECONDS
from casemate.cli import tool
from casemate.streams.exactly import exactly
from casemate.wire.errors import DisconnectedError, ProtocolError, QubeError
from casemate.wire.link import CONTROL, MAX_CONTROL, control_message, parse_object
from casemate.wire.qrexec import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from casemate.cli.report import Report
    from casemate.client.qubes import Qubes

ANSWER_SECONDS = 1.0
"""Time that an agent has for a sign of life. A busy guest under emulation needs a tenth of it."""
END_SECONDS = 30.0
"""Silence after which a call ends whose input was not sent yet."""
_SELDOM = 60.0
"""Longest time between two questions to a qube that answers, while its service says nothing: it may just be at work."""


def ask(addresses: Sequence[str], within: float = ANSWER_SECONDS) -> list[dict[str, Any] | None]:
    """Ask the links at these sockets, all at once, whether their agents answer; None for a link that is not there.

    An answer is ``{"answers": bool, "silent": SECONDS, "why": WHY}``; see ``link.requests``.
    """
    sockets: list[socket.socket | None] = []
    for address in addresses:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(within + 2)
        try:
            sock.connect(address)
            sock.sendall(control_message({"op": "answers", "within": within}))
            sockets.append(sock)
        except OSError:
            sock.close()
            sockets.append(None)
    return [None if sock is None else _answer(sock) for sock in sockets]


def _answer(sock: socket.socket) -> dict[str, Any] | None:
    with sock:
        try:
            kind, length = HEADER.unpack(exactly(sock, HEADER.size))
            if kind != CONTROL or length > MAX_CONTROL:
                return None
            return parse_object(exactly(sock, length), "answer of a link")
        except (OSError, EOFError, ProtocolError):
            return None


class Silence:
    """Looks after one call of a tool; it is the call's ``on_silence``.

    A qube that answers is left in peace: its service may have nothing to say. Of one that does not, the user is told at
    once, and again when it answers.
    """

    def __init__(self, prog: str, qubes: Qubes, name: str, report: Report | None = None) -> None:
        self._prog = prog
        self._qubes = qubes
        self._name = name
        self._report = report
        self._since = 0.0
        self._pause = SILENCE_SECONDS

    def __call__(self, input_sent: bool) -> float:
        """Seconds until it is to be looked again. QubeError for a paused qube, DisconnectedError after END_SECONDS."""
        found = ask([self._qubes.transport.settings.link_address(self._name)])[0]
        if found is None or found.get("answers"):
            if self._since:
                sys.stderr.write(f"{self._prog}: {self._name} answers again\n")
                self._since = 0.0
                self._pause = SILENCE_SECONDS
            self._pause = min(2 * self._pause, _SELDOM)
            return self._pause
        _must_not_be_paused(self._qubes, self._name)
        why = f"; {found['why']}" if found.get("why") else ""
        if not self._since:
            self._since = time.monotonic() - SILENCE_SECONDS
            tool.say(self._prog, f"{self._name} does not answer{why}; waiting")
            if self._report is not None:
                self._report.step("silent", why=f"{self._name} does not answer{why}")
        silent = time.monotonic() - self._since
        if silent >= END_SECONDS and not input_sent:
            raise DisconnectedError(
                f"it has not answered for {silent:.0f} seconds{why}, and none of the call's input was sent; when it "
                "answers again it may still begin what it was asked for"
            )
        return SILENCE_SECONDS


def _must_not_be_paused(qubes: Qubes, name: str) -> None:
    """QubeError where a qube that does not answer is paused: it would never answer."""
    if "power_state=Paused" not in qubes.call("admin.vm.CurrentState", "", name).split():
        return
    why = dict(part.split(": ", 1) for part in str(qubes.status().get("stuck", "")).split("; ") if ": " in part)
    cause = f" by its machine ({why[name]})" if name in why else ""
    raise QubeError(f"{name} is paused{cause}, so it does not answer: qvm-unpause {name}")


def unanswering(qubes: Qubes) -> list[tuple[str, str]]:
    """Running qubes whose agents give no sign of life now, each with what is known of the cause; sorted."""
    names = [one.name for one in qubes.listed() if one.state == "Running" and one.klass not in ("AdminVM", "RemoteVM")]
    settings = qubes.transport.settings
    told = ask([settings.link_address(name) for name in names])
    return sorted(
        (name, str(found.get("why") or "")) for name, found in zip(names, told, strict=True)
        if found is not None and not found.get("answers")
    )  # fmt: skip
