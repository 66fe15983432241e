"""In a template: takes connections of apt to a local port to ``qubes.UpdatesProxy`` of a net qube.

The agent holds the port and starts this program, with the port as descriptor 0, at the first connection; it ends when
nobody has connected for a while, and the agent watches again. So a template that is not updated pays nothing for it.
"""

from __future__ import annotations

import socket

from casemate.agent.connect_tcp import serve

SERVICE = "qubes.UpdatesProxy"
TARGET = "@default"
IDLE_SECONDS = 60.0


def main(argv: list[str]) -> int:
    """Serve the port that is descriptor 0."""
    serve(socket.socket(fileno=0), TARGET, SERVICE, IDLE_SECONDS)
    return 0
