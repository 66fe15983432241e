"""``casemate prompt``: asks on this terminal about calls for which the policy says ``ask``."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
import time

from casemate.calls.request import connect
from casemate.client.qubes import Qubes
from casemate.streams.ready import readable
from casemate.wire.errors import CasemateError, DisconnectedError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEAF_SECONDS = 0.5
"""How long a new question takes no answer: what is typed then was meant for something else."""


class Prompt:
    """One terminal that asks one question at a time."""

    def __init__(self, sock: socket.socket, terminal: int, output: int) -> None:
        self._sock = sock
        self._terminal = terminal
        self._output = output
        self._data = b""
        self._question: dict[str, Any] | None = None
        self._number = 0
        self._hears_at = 0.0
        self._deaf = False
        self._attributes = termios.tcgetattr(terminal)

    def run(self) -> int:
        """Ask until the daemon goes away."""
        self._say("Calls for which the policy says `ask` are shown here. Ctrl-C ends this; then they are denied.")
        try:
            while True:
                files: list[socket.socket | int] = [self._sock] if self._deaf else [self._sock, self._terminal]
                wait = max(0.0, self._hears_at - time.monotonic()) if self._deaf else None
                ready = readable(files, wait)
                if self._sock in ready and not self._read():
                    self._say("The daemon has stopped.")
                    return 1
                if not self._deaf:
                    if self._terminal in ready:
                        self._typed()
                elif time.monotonic() >= self._hears_at:
                    self._listen()
        finally:
            self._echo(True)

    def _say(self, text: str) -> None:
        os.write(self._output, text.encode("ascii", "backslashreplace") + b"\n")

    def _read(self) -> bool:
        import json

        data = self._sock.recv(65536)
        *lines, self._data = (self._data + data).split(b"\n")
        for line in lines:
            body = json.loads(line)
            if "ask" in body:
                self._show(body)
            elif "notify" in body:
                self._tell(body["notify"])
            elif self._question is not None and body.get("withdrawn") == self._number:
                self._question = None
                self._deaf = False
                self._echo(True)
                self._say("\n-- withdrawn: no answer is wanted any more")
        return bool(data)

    def _tell(self, note: dict[str, Any]) -> None:
        call = f"{note['service']}{note['argument']} of {note['source']} to {note['target']}"
        words = {"allow": "allowed", "deny": "denied", "fail": "allowed, but failed"}
        more = f" (and {note['suppressed']} more)" if note.get("suppressed") else ""
        self._say(f"-- {words.get(note['resolution'], '?')}: {printable(call, 300)}{more}")

    def _show(self, body: dict[str, Any]) -> None:
        self._question, self._number = body["ask"], int(body["id"])
        ask = body["ask"]
        icons = {name: f"   [{printable(icon, 40)}]" for name, icon in ask.get("icons", {}).items() if icon}
        lines = [
            "", "== A qube asks =====================================================",
            f"  source    {printable(ask['source'], 80)}{icons.get(ask['source'], '')}",
            f"  service   {printable(ask['service'], 80)}",
            f"  argument  {printable(ask['argument'], 300)}",
            f"  It goes to one of these, if you allow it ({body['seconds']:.0f} s):",
        ]  # fmt: skip
        for number, target in enumerate(ask["targets"], 1):
            default = "   (default)" if target == ask["default_target"] else ""
            lines.append(f"  {number:>4}  {printable(target, 80)}{icons.get(target, '')}{default}")
        self._say("\n".join(lines))
        self._echo(False)
        self._deaf = True
        self._hears_at = time.monotonic() + DEAF_SECONDS

    def _listen(self) -> None:
        """From now on input counts; what was typed before is gone."""
        self._deaf = False
        termios.tcflush(self._terminal, termios.TCIFLUSH)
        self._echo(True)
        self._invite()

    def _invite(self) -> None:
        yes = "y for the default, " if self._default() else ""
        os.write(self._output, f"Allow? (a number, {yes}n to deny) ".encode())

    def _default(self) -> str:
        ask = self._question or {}
        targets = ask.get("targets", [])
        return str(ask.get("default_target") or (targets[0] if len(targets) == 1 else ""))

    def _echo(self, wanted: bool) -> None:
        attributes = termios.tcgetattr(self._terminal)
        attributes[3] = self._attributes[3] if wanted else attributes[3] & ~termios.ECHO
        termios.tcsetattr(self._terminal, termios.TCSANOW, attributes)

    def _typed(self) -> None:
        data = os.read(self._terminal, 4096)
        if self._question is None:
            if not data:
                raise KeyboardInterrupt
            return
        word = data.decode("ascii", "replace").strip().lower()
        targets = self._question["targets"]
        if not data or word in ("n", "no"):
            self._answer("deny", "denied")
        elif word in ("y", "yes") and self._default():
            self._answer(f"allow:{self._default()}", f"allowed, to {self._default()}")
        elif word.isdecimal() and 1 <= int(word) <= len(targets):
            self._answer(f"allow:{targets[int(word) - 1]}", f"allowed, to {targets[int(word) - 1]}")
        else:
            self._invite()

    def _answer(self, answer: str, shown: str) -> None:
        import json

        self._question = None
        self._say(f"-- {printable(shown)}")
        self._sock.sendall(json.dumps({"id": self._number, "answer": answer}).encode() + b"\n")


def run(qubes: Qubes) -> int:
    """Ask on the terminal of this process."""
    terminal = sys.stdin.fileno()
    if not os.isatty(terminal):
        raise CasemateError("A prompt needs a terminal as its standard input")
    try:
        fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CasemateError("Another prompt uses this terminal") from None
    qubes.call("admin.vm.List")  # starts the daemon where it does not run
    try:
        with connect(str(qubes.transport.settings.prompt_socket)) as sock:
            return Prompt(sock, terminal, sys.stdout.fileno()).run()
    except (DisconnectedError, OSError) as error:
        raise DisconnectedError(f"The daemon takes no prompter: {error}") from None
