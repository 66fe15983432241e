"""What the host asks running qubes for by itself: to run a service, and for keys of their database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from casemate.qdb.client import QubesDB
from casemate.settings import Settings
from casemate.wire.admin import ADMIN
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import DisconnectedError, ProtocolError
from casemate.wire.names import qube_name
from casemate.wire.qrexec import DATA_STDOUT, Command, exec_message

log = logging.getLogger(__name__)

_DATABASE_SECONDS = 10.0
"""Seconds for a whole answer. The database is in the link's memory, so that more means a link that hangs."""
_CHUNK = 65536

ANSWER_BYTES = 4096
"""Most bytes that a qube may answer to a question of the host."""
CLOCK_SECONDS = 10.0
"""Seconds that a qube has to set its clock; half a second is usual when it is emulated."""

SETTLE_SECONDS = 120.0
"""Seconds from the agent's first answer until all units of systemd have started; an emulated desktop takes a minute."""
NO_SERVICE = 127
"""Exit status of a service that the guest does not have."""


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
            async with asyncio.timeout(_DATABASE_SECONDS):
                return await asyncio.to_thread(read)
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
            async with asyncio.timeout(_DATABASE_SECONDS):
                await asyncio.to_thread(change)
        except TimeoutError:
            raise DisconnectedError(f"The database of {name} does not answer") from None

    async def set_clock(self, name: str) -> None:
        """Set the clock of a qube whose time stood still to the host's (``qubes.SetDateTime``)."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00\n", time.gmtime()).encode("ascii")
        status = await self.run(name, "qubes.SetDateTime", "root", CLOCK_SECONDS, now)
        if status != 0:
            raise DisconnectedError(f"{name}: qubes.SetDateTime ended with status {status}")

    async def settle(self, name: str) -> None:
        """Return when everything that a qube starts at boot has started (``qubes.WaitForRunningSystem``).

        DisconnectedError when that takes longer than a start may. A guest without the service is settled already.
        """
        try:
            status = await self.run(name, "qubes.WaitForRunningSystem", "DEFAULT", SETTLE_SECONDS)
        except TimeoutError:
            raise DisconnectedError(f"{name} did not come to rest within {SETTLE_SECONDS:g} s") from None
        if status not in (0, NO_SERVICE):
            raise DisconnectedError(f"{name}: qubes.WaitForRunningSystem ended with status {status}")
        await self.warm_up(name)

    async def warm_up(self, name: str) -> None:
        """Set the clock and run a command that does nothing; a qube that does not answer is no error."""
        # What the first user of the qube would wait for is done now: pages are read, an emulated guest's code is
        # translated. Both services do nothing that lasts.
        try:
            await self.set_clock(name)
            await self.run(name, "qubes.VMShell", "DEFAULT", CLOCK_SECONDS, b"exit\n")
        except (DisconnectedError, TimeoutError) as error:
            log.info("%s was not warmed up: %s", name, error or "no answer")

    async def run(self, name: str, service: str, user: str, within: float, stdin: bytes = b"") -> int:
        """Run a service in the qube and return its exit status; TimeoutError after ``within`` seconds.

        Output is read and dropped: a service that waits for a reader would never end.
        """
        return await self._run(name, Command(user, service, None, ADMIN), within, stdin, bytearray(), 0)

    async def ask(self, name: str, service: str, argument: str, within: float) -> bytes:
        """The output of a service, which must end with status 0: at most ANSWER_BYTES. DisconnectedError otherwise."""
        output = bytearray()
        try:
            status = await self._run(
                name, Command("DEFAULT", service, argument, ADMIN), within, b"", output, ANSWER_BYTES
            )
        except TimeoutError:
            raise DisconnectedError(f"{name} did not answer {service} within {within:g} s") from None
        if status != 0:
            raise DisconnectedError(f"{name}: {service} ended with status {status}")
        return bytes(output)

    async def _run(self, name: str, command: Command, within: float, stdin: bytes, output: bytearray, most: int) -> int:
        side = CallerSide()
        async with asyncio.timeout(within):
            try:
                reader, writer = await asyncio.open_unix_connection(self._settings.link_address(qube_name(name)))
            except OSError as error:
                raise DisconnectedError(f"{name} cannot be reached: {error.strerror}") from None
            try:
                writer.write(exec_message(command.cmdline()))
                writer.writelines([*side.stdin(stdin), *side.stdin_eof()])
                while side.exit_code is None:
                    data = await reader.read(_CHUNK)
                    if not data:
                        raise DisconnectedError(f"{name} went away while it ran {command.service}")
                    for kind, piece in side.feed(data):
                        if kind == DATA_STDOUT and most:
                            output += piece
                            if len(output) > most:
                                raise ProtocolError(f"the answer is longer than {most} bytes")
            except (ConnectionError, ProtocolError) as error:
                raise DisconnectedError(f"{name}: {command.service}: {error}") from None
            finally:
                writer.transport.abort()
        return side.exit_code
