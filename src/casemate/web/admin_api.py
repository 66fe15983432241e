"""Calls of the Admin API and its events, for one asyncio loop: waiting for a qube to start takes no thread."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from casemate.client.transport import Transport
from casemate.wire.admin import ADMIN, Event, EventReader, build_request, parse_reply
from casemate.wire.errors import DaemonAccessError

MAX_REPLY = 64 << 20
"""Limit of the manager page (bytes): one reply of the daemon. A list of 10,000 qubes takes about 10 MiB."""
CALL_SECONDS = 900.0
"""Limit of the manager page (seconds): one call. A start may wait for a net qube and its own agent, each a minute or
more; building a warm image takes as long as a boot."""
_CHUNK = 65536


class AdminApi:
    """Reaches one daemon through ``transport``, which starts the daemon where none listens."""

    def __init__(self, transport: Transport | None = None) -> None:
        self.transport = transport if transport is not None else Transport()

    async def call(
        self, method: str, arg: str = "", dest: str = ADMIN, payload: str = "", seconds: float = CALL_SECONDS
    ) -> str:
        """The content of the reply as text. Raises the error that the daemon reports; DaemonAccessError where no
        reply came in that many seconds."""
        request = build_request(method, arg, dest, payload.encode())
        try:
            async with asyncio.timeout(seconds), self._asked(request) as reader:
                data = bytearray()
                while part := await reader.read(_CHUNK):
                    data += part
                    if len(data) > MAX_REPLY:
                        raise DaemonAccessError(f"The daemon's answer is longer than {MAX_REPLY} bytes")
        except TimeoutError:
            raise DaemonAccessError(f"The daemon did not answer in {seconds:g} s") from None
        except OSError as error:
            raise DaemonAccessError(f"The daemon cannot be reached: {error.strerror or error}") from error
        return parse_reply(bytes(data)).decode("utf-8", "backslashreplace")

    async def events(self, method: str = "admin.Events") -> AsyncIterator[list[Event]]:
        """Events as they come, several at a time. Ends by DaemonAccessError when the daemon goes."""
        try:
            async with self._asked(build_request(method)) as reader:
                found = EventReader()
                while data := await reader.read(_CHUNK):
                    if events := list(found.feed(data)):
                        yield events
                found.finish()
        except OSError as error:
            raise DaemonAccessError(f"The daemon cannot be reached: {error.strerror or error}") from error
        raise DaemonAccessError("The daemon ended the subscription")

    @asynccontextmanager
    async def _asked(self, request: bytes) -> AsyncIterator[asyncio.StreamReader]:
        """A connection on which ``request`` was sent, until the block ends."""
        # In a thread: where no daemon listens, this starts one and waits until it does.
        connection: socket.socket = await asyncio.to_thread(self.transport.connect)
        try:
            connection.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            try:
                writer.write(request)
                writer.write_eof()
                await writer.drain()
            except (BrokenPipeError, ConnectionResetError):
                pass  # the daemon refused before it had read everything; its reply says why
            yield reader
        finally:
            writer.transport.abort()
