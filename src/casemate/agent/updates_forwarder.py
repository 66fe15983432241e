"""In a template: takes connections of apt to a local port to ``qubes.UpdatesProxy`` of a net qube.

The agent holds the port and starts this program, with the port as descriptor 0, at the first connection; it ends when
nobody has connected for a while, and the agent watches again. So a template that is not updated pays nothing for it.
"""

from __future__ import annotations

import os
import select
import socket

from casemate.agent.connect_tcp import MAX_CONNECTIONS, serve_connection

SERVICE = "qubes.UpdatesProxy"
TARGET = "@default"
IDLE_SECONDS = 60.0


def main(argv: list[str]) -> int:
    """Serve the port that is descriptor 0."""
    listener = socket.socket(fileno=0)
    running: set[int] = set()
    while select.select([listener], [], [], IDLE_SECONDS)[0] or running:
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                running.discard(pid)
        if len(running) >= MAX_CONNECTIONS or not select.select([listener], [], [], 0)[0]:
            continue
        connection, _address = listener.accept()
        pid = os.fork()
        if pid == 0:
            listener.close()
            os._exit(serve_connection(connection, TARGET, SERVICE))
        connection.close()
        running.add(pid)
    return 0
