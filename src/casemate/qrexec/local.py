"""Listens on sockets that only the daemon's own user and root may use, and checks that with the kernel."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def is_ours(connection: socket.socket) -> bool:
    """Whether the other end is a program of our own user, or of root; the kernel says who it is."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(raw)[1] in (0, os.geteuid())


async def listen(path: Path, handler: Handler, longest: int) -> asyncio.Server:
    """Serve connections at a path. ``longest`` is the number of bytes after which a line is given up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if is_ours(writer.get_extra_info("socket")):
                await handler(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or does not keep to the protocol
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    old = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(serve, path, limit=longest)
    finally:
        os.umask(old)
