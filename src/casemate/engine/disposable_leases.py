"""Leases of disposables: a disposable ends when the tool that asked for it closes its connection, or dies.

A tool connects to ``RUN/leases.sock``, writes the name of a disposable and a newline, and keeps the connection open. A
lease has no time limit; the kernel closes the connection of a process that ends in whatever way.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from casemate.wire.errors import CasemateError, printable
from casemate.wire.names import qube_name

log = logging.getLogger(__name__)

_LONGEST = 64
"""Bytes of a line: twice the longest name of a qube (31)."""


class LeaseServer:
    """Listens for leases. ``end(name)`` removes a disposable and does nothing for one that is gone."""

    def __init__(self, end: Callable[[str], Awaitable[None]]) -> None:
        self._end = end
        self._server: asyncio.Server | None = None
        self._closing = False

    async def start(self, path: Path) -> None:
        """Listen; only our own user may connect."""
        path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._hold, path, limit=_LONGEST)
        finally:
            os.umask(old)

    async def close(self) -> None:
        """Stop listening. Disposables stay: their tools end them, or lease them from the next daemon."""
        self._closing = True
        if self._server is not None:
            self._server.close()

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name = qube_name((await reader.readuntil(b"\n"))[:-1])
            await reader.read()
        except (CasemateError, OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.warning("broken lease: %s", printable(str(error)))
            return
        finally:
            writer.close()
        if not self._closing:
            await self._end(name)
