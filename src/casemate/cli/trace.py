"""``casemate trace``: shows calls of qubes and of this host's tools while they happen, each step with its time."""

from __future__ import annotations

import socket
import sys
import time

from casemate.calls.request import connect
from casemate.cli import colour
from casemate.client.qubes import Qubes
from casemate.wire.errors import DisconnectedError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


_MEANINGS = {125: " (cannot be run)", 127: " (no such service)", 255: " (went away)"}
"""Of exit statuses that say something about the call; a service's own may be the same."""


def line_of(step: dict[str, Any], clock: str) -> str:
    """A step as a person reads it."""
    call = f"{step.get('service', '')}+{step.get('argument', '')}"
    detail = ""
    if step["phase"] == "refused":
        detail = f"({step.get('cause')}) {step.get('why')}"
    elif step["phase"] == "ended":
        status = step.get("status")
        detail = "" if status is None else f"status {status}" + _MEANINGS.get(status, "")
    elif step["phase"] == "silent":
        detail = str(step.get("why"))
    elif step.get("final"):
        detail = f"to {step['final']}" + (f", {step['why']}" if step.get("why") else "")
    at = float(step.get("at", 0.0))
    who = f"{step.get('source')} -> {step.get('target')}"
    text = f"{clock} {step.get('id', '?'):>6} {at * 1e3:10.1f} ms  {step['phase']:<9} {who}  {call}  {detail}"
    return printable(text.rstrip(), 400)


def _shown(step: dict[str, Any], clock: str) -> str:
    """The same, in colour on a terminal."""
    line = line_of(step, clock)
    kind = "bad" if step["phase"] == "refused" else "warn" if step["phase"] == "silent" else ""
    return colour.paint(line, kind) if kind and colour.wanted(sys.stdout) else line


def concerns(step: dict[str, Any], name: str) -> bool:
    """Whether a qube has to do with a step."""
    return name in (step.get("source"), step.get("target"), step.get("final"))


def _steps(sock: socket.socket) -> Iterator[bytes]:
    data = b""
    while more := sock.recv(65536):
        *lines, data = (data + more).split(b"\n")
        yield from lines


def run(qubes: Qubes, name: str | None, as_json: bool) -> int:
    """Show steps until interrupted; those of one qube, or of all."""
    import json

    if name is not None:
        qubes.call("admin.vm.CurrentState", "", name)  # a name that nobody has is an error, not silence
    else:
        qubes.call("admin.vm.List")
    shown: set[object] = set()  # calls that concern the qube: their later steps do too
    try:
        with connect(str(qubes.transport.settings.trace_socket)) as sock:
            for line in _steps(sock):
                step = json.loads(line)
                if step.get("phase") == "watching":
                    sys.stderr.write("Watching calls; Ctrl-C ends this.\n")
                    continue
                if name is not None and step.get("id") not in shown:
                    if not concerns(step, name):
                        continue
                    shown.add(step.get("id"))
                if step["phase"] == "ended":
                    shown.discard(step.get("id"))
                print(line.decode() if as_json else _shown(step, time.strftime("%H:%M:%S")), flush=True)
    except OSError as error:
        raise DisconnectedError(f"The daemon cannot be watched: {error.strerror}") from None
    return 0
