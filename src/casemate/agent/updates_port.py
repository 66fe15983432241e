"""The local port at which apt of a template finds the updates proxy: held by the agent, served by another program."""

from __future__ import annotations

import os
import socket

from casemate.agent.main import APT_PROXY
from casemate.agent.service import own_tool
from casemate.calls.spawn import PATH
from casemate.streams.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.calls.children import Children

PORT = 8082
_TEXT = f"""\
// Written by the agent: this template reaches mirrors through a net qube (qubes.UpdatesProxy).
Acquire::http::Proxy "http://127.0.0.1:{PORT}/";
Acquire::https::Proxy "http://127.0.0.1:{PORT}/";
"""


class UpdatesPort:
    """The listening port. While its program runs, the program accepts; then the agent watches again."""

    def __init__(self, loop: Loop, children: Children) -> None:
        self._loop = loop
        self._children = children
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", PORT))
        self._socket.listen(64)
        if os.path.isdir(os.path.dirname(APT_PROXY)):
            with open(APT_PROXY, "w", encoding="ascii") as file:
                file.write(_TEXT)
        self._watch()

    def _watch(self) -> None:
        self._loop.watch(self._socket.fileno(), READ, lambda _mask: self._serve())

    def _serve(self) -> None:
        self._loop.unwatch(self._socket.fileno())
        argv = own_tool("updates-forwarder")
        actions = [(os.POSIX_SPAWN_DUP2, self._socket.fileno(), 0)]
        try:
            pid = os.posix_spawn(argv[0], argv, {"PATH": PATH}, file_actions=actions, setsid=True)
        except OSError:
            self._loop.later(1.0, self._watch)
            return
        self._children.add(pid, lambda _status: self._watch())
