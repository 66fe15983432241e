"""The agent's part in the network: keeps the interface as the database says; in a net qube runs what serves others.

Imported only where the qube has a network: each module costs an emulated guest time at its start.
"""

from __future__ import annotations

import os
import signal

from casemate.agent.interface import KEYS, Interface
from casemate.agent.netlink import link_events
from casemate.agent.service import own_tool
from casemate.calls.spawn import PATH
from casemate.streams.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.calls.children import Children
    from casemate.qdb.tree import Tree

PROVIDER_KEY = "/qubes-netvm-gateway"
"""A net qube is known by this key."""
_SETTLE_SECONDS = 0.02
"""The keys of one change come one after the other; the interface is brought once for all."""
_AGAIN_SECONDS = 1.0
_READY_SECONDS = 30.0
"""How long the agent waits for the first rules before it tells the host that the qube is ready. It forwards nothing
before they are loaded, so a longer wait would only hold up the start."""


class Network:
    """One per agent. Owns the interface's state and, in a net qube, the process that serves other qubes."""

    def __init__(self, loop: Loop, tree: Tree, children: Children) -> None:
        self._loop = loop
        self._tree = tree
        self._children = children
        self._interface = Interface(tree.read)
        self._pending = False
        self._serving = False
        self._outside: tuple[str, str, int] | None = None
        self._outside_pid = -1
        self._on_ready: Callable[[], None] | None = None
        events = link_events()
        self._events = events
        loop.watch(events.fileno(), READ, lambda _mask: self._link_changed())

    def begin(self, ready: Callable[[], None]) -> None:
        """Set up what there is; ``ready`` is called when programs may use it."""
        self.bring()
        if self._tree.read(PROVIDER_KEY) is None:
            ready()
            return
        self._on_ready = ready
        self._loop.later(_READY_SECONDS, self._ready)
        self._serve()

    def _ready(self) -> None:
        ready, self._on_ready = self._on_ready, None
        if ready is not None:
            ready()

    def changed(self, path: str) -> None:
        """A key has another value, or has gone."""
        if path in KEYS:
            self._soon()
        elif path == PROVIDER_KEY and not self._serving and self._tree.read(path) is not None:
            self._serve()

    def _soon(self) -> None:
        if not self._pending:
            self._pending = True
            self._loop.later(_SETTLE_SECONDS, self.bring)

    def bring(self) -> None:
        """Make the interface what the database says now."""
        self._pending = False
        self._interface.bring()
        if self._interface.outside != self._outside:
            self._outside = self._interface.outside
            self._follow_outside()

    def _follow_outside(self) -> None:
        """Have the program run that gives the interface an address from outside, for what it is to be now."""
        if self._outside_pid >= 0:
            # It is ours until we are told of its end, so this is no other process. Its end starts the next one.
            os.kill(self._outside_pid, signal.SIGKILL)
        elif self._outside is not None:
            mac, what, _index = self._outside
            argv = [*own_tool("outside"), mac, what]
            try:
                self._outside_pid = os.posix_spawn(argv[0], argv, {"PATH": PATH}, setsid=True)
            except OSError:
                self._loop.later(_AGAIN_SECONDS, self._follow_outside)
                return
            self._children.add(self._outside_pid, self._outside_ended)

    def _outside_ended(self, _status: int) -> None:
        self._outside_pid = -1
        if self._outside is not None:
            self._loop.later(_AGAIN_SECONDS, self._follow_outside_again)

    def _follow_outside_again(self) -> None:
        if self._outside_pid < 0:
            self._follow_outside()

    def _link_changed(self) -> None:
        try:
            while self._events.recv(65536):
                pass
        except OSError:
            pass  # nothing more, or more than the socket holds: look in any case
        self._soon()

    def _serve(self) -> None:
        """Start the process that serves other qubes, and again when it ends: its rules stay in the kernel meanwhile."""
        self._serving = True
        reading, writing = os.pipe2(os.O_CLOEXEC)
        argv = own_tool("net-qube")
        try:
            pid = os.posix_spawn(
                argv[0], argv, {"PATH": PATH}, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)], setsid=True
            )
        except OSError:
            os.close(reading)
            self._loop.later(_AGAIN_SECONDS, self._serve)
            return
        finally:
            os.close(writing)
        # It closes its standard output when the first rules are loaded; its end does that too.
        self._loop.watch(reading, READ, lambda _mask: self._first_rules(reading))
        self._children.add(pid, self._ended)

    def _ended(self, _status: int) -> None:
        self._loop.later(_AGAIN_SECONDS, self._serve)

    def _first_rules(self, reading: int) -> None:
        self._loop.unwatch(reading)
        os.close(reading)
        self._ready()
