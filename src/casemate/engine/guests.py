"""What the host asks running qubes for by itself: to run a service, and for keys of their database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from casemate.qdb.client import QubesDB
from casemate.settings import Settings
from casemate.wire.admin import ADMIN
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import DisconnectedError, ProtocolError
from casemate.wire.names import qube_name
from casemate.wire.qrexec import Command, exec_message

_DATABASE_SECONDS = 10.0
"""Seconds for a whole answer. The database is in the link's memory, so that more means a link that hangs."""
_CHUNK = 65536

CLOCK_SECONDS = 10.0
"""Seconds that a qube has to set its clock; half a second is usual when it is emulated."""


class Guests:
    """Reaches qubes through their links; a qube that does not run, or does not answer, is DisconnectedError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def database(self, name: str, prefix: str) -> dict[str, bytes]:
        """Keys that begin with ``prefix`` and their values. The qube may have written anything there."""
        path = self._settings.database_socket(qube_name(name))

        def read() -> dict[str, bytes]:
            with QubesDB(path) as database:
                return database.multiread(prefix)

        try:
            return await asyncio.wait_for(asyncio.to_thread(read), _DATABASE_SECONDS)
        except TimeoutError:
            raise DisconnectedError(f"The database of {name} does not answer") from None

    async def change_database(self, name: str, write: Mapping[str, str], remove: list[str]) -> None:
        """Write and remove keys of a running qube's database."""
        path = self._settings.database_socket(qube_name(name))

        def change() -> None:
            with QubesDB(path) as database:
                for key, value in write.items():
                    database.write(key, value.encode())
                for key in remove:
                    database.rm(key)

        try:
            await asyncio.wait_for(asyncio.to_thread(change), _DATABASE_SECONDS)
        except TimeoutError:
            raise DisconnectedError(f"The database of {name} does not answer") from None

    async def set_clock(self, name: str) -> None:
        """Set the clock of a qube whose time stood still to the host's (``qubes.SetDateTime``)."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00\n", time.gmtime()).encode("ascii")
        status = await self.run(name, "qubes.SetDateTime", "root", CLOCK_SECONDS, now)
        if status != 0:
            raise DisconnectedError(f"{name}: qubes.SetDateTime ended with status {status}")

    async def run(self, name: str, service: str, user: str, within: float, stdin: bytes = b"") -> int:
        """Run a service in the qube and return its exit status; TimeoutError after ``within`` seconds.

        Output is read and dropped: a service that waits for a reader would never end.
        """
        side = CallerSide()
        async with asyncio.timeout(within):
            try:
                reader, writer = await asyncio.open_unix_connection(self._settings.link_address(qube_name(name)))
            except OSError as error:
                raise DisconnectedError(f"{name} cannot be reached: {error.strerror}") from None
            try:
                writer.write(exec_message(Command(user, service, None, ADMIN).cmdline()))
                writer.writelines([*side.stdin(stdin), *side.stdin_eof()])
                while side.exit_code is None:
                    data = await reader.read(_CHUNK)
                    if not data:
                        raise DisconnectedError(f"{name} went away while it ran {service}")
                    for _piece in side.feed(data):
                        pass
            except (ConnectionError, ProtocolError) as error:
                raise DisconnectedError(f"{name}: {service}: {error}") from None
            finally:
                writer.transport.abort()
        return side.exit_code
