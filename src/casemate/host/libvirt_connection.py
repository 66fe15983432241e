"""The connection to libvirt: blocking calls in threads, one event loop for the process, reconnection to a daemon."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import libvirt

from casemate.host.libvirt_errors import code_of, translated

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 8
"""Calls at a time. A call can take seconds (a start, a detach), and others must not wait for it."""
_RECONNECTS = 2
"""How often a call is tried anew when libvirt's daemon goes away. The first may still reach the dying daemon."""
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 5, 3
"""A daemon that has not answered after 3 times 5 seconds is gone."""
_LOST = (libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_NO_CONNECT)
"""Codes of a connection whose other end has gone; a reset socket has a system error of the RPC layer instead."""


class EventThread:
    """libvirt's own event loop, in a thread; there is one per process, whatever becomes of asyncio's loops."""

    _started = False
    _lock = threading.Lock()

    @classmethod
    def start(cls) -> None:
        """Start it once, before the first connection."""
        with cls._lock:
            if not cls._started:
                libvirt.registerErrorHandler(lambda _context, _error: None, None)  # each error is raised too
                libvirt.virEventRegisterDefaultImpl()
                threading.Thread(target=cls._run, name="libvirt events", daemon=True).start()
                cls._started = True

    @staticmethod
    def _run() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as error:
                log.error("libvirt's event loop: %s", error)


class LibvirtConnection:
    """One connection. ``hear`` is called for each lifecycle event of any machine, in the thread of libvirt's events."""

    def __init__(self, uri: str, hear: Callable[[Any, Any, int, int, Any], None]) -> None:
        self._uri = uri
        self._hear = hear
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="libvirt")
        self._opening = threading.Lock()
        self.connection: Any = None
        """libvirt's object, None while there is none. To be used through ``call``."""
        self._handle = -1

    async def open(self) -> None:
        """Open the connection; errors say which libvirt was meant."""
        await self.call(f"connect to libvirt ({self._uri})", lambda connection: connection.getLibVersion())

    def _connected(self) -> Any:
        """The connection, opened again when its daemon has gone away meanwhile. In a pool thread."""
        with self._opening:
            if self.connection is None or self.connection.isAlive() != 1:
                connection = libvirt.open(self._uri)
                self._handle = connection.domainEventRegisterAny(
                    None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._hear, None
                )
                try:
                    connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
                except libvirt.libvirtError:
                    pass  # an embedded libvirt has no connection that could be lost
                self.connection = connection
            return self.connection

    def _drop(self, connection: Any) -> None:
        """Use this connection no more."""
        with self._opening:
            if self.connection is connection:
                self.connection = None

    async def call(self, action: str, work: Callable[[Any], T]) -> T:
        """Run blocking calls of libvirt in a thread; again when its daemon was restarted meanwhile."""

        def attempt() -> T:
            with translated(action):
                for _again in range(_RECONNECTS):
                    connection = self._connected()
                    try:
                        return work(connection)
                    except libvirt.libvirtError as error:
                        if not _lost(error) and connection.isAlive() == 1:
                            raise
                        self._drop(connection)
                return work(self._connected())

        return await asyncio.get_running_loop().run_in_executor(self._threads, attempt)

    async def close(self) -> None:
        """Let go of libvirt; machines run on."""

        def let_go() -> None:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.domainEventDeregisterAny(self._handle)
                connection.close()

        with translated("close the connection to libvirt"):
            await asyncio.get_running_loop().run_in_executor(self._threads, let_go)
        self._threads.shutdown(wait=False)


def _lost(error: libvirt.libvirtError) -> bool:
    """Whether libvirt's daemon, not the machine, is what failed."""
    return code_of(error) in _LOST or (
        code_of(error) == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_error_domain() == libvirt.VIR_FROM_RPC
    )
