"""The conversation with a process that makes one backup: it asks for volumes, tells how far it is, and how it ended."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from casemate.host.process import PACKAGE_PATH, Runner
from casemate.wire.errors import CasemateError, StorageError, printable

ONE_FILE, INCREMENTAL = "casemate.backup.job", "casemate.backup.incremental.job"
"""The two programs. Their docstrings have the lines of the conversation."""
STALL_SECONDS = 900.0
"""How long nothing may come out of the process before it is given up: what it writes to takes nothing any more."""
_STOP_SECONDS = 10.0

Opener = Callable[[dict[str, Any]], AbstractAsyncContextManager[dict[str, object]]]
"""Makes readable what the process asks for, until the block ends. Gets the process's line, gives the answer."""


class BackupJob:
    """One run of one of the programs; ``target`` is a descriptor that it inherits."""

    def __init__(self, runner: Runner, program: str, target: int | None = None) -> None:
        self._runner = runner
        self._argv = [sys.executable, "-P", "-m", program, *([] if target is None else [str(target)])]
        self._fds = [] if target is None else [target]

    async def run(self, order: dict[str, object], opener: Opener, progress: Callable[[int], None]) -> None:
        """Have the backup made; StorageError says why it was not. One volume at a time is open."""
        pipe = asyncio.subprocess.PIPE
        process = await self._runner.spawn(
            self._argv, env={"PYTHONPATH": PACKAGE_PATH}, pass_fds=self._fds, stdin=pipe, stdout=pipe
        )
        assert process.stdin is not None and process.stdout is not None
        volumes = AsyncExitStack()
        try:
            await _send(process.stdin, order)
            while line := await _next(process.stdout):
                said = json.loads(line)
                if "open" in said:
                    try:
                        answer = await volumes.enter_async_context(opener(said))
                    except CasemateError as error:
                        answer = {"error": str(error)}
                    await _send(process.stdin, answer)
                elif "close" in said:
                    await volumes.aclose()
                elif "progress" in said:
                    progress(said["progress"])
                elif "error" in said:
                    raise StorageError(f"The backup was not written: {printable(said['error'], 600)}")
                elif "done" in said:
                    return
            raise StorageError(
                "The backup was not written: the process that writes it ended; the daemon's log may say why"
            )
        finally:
            try:
                await volumes.aclose()
            finally:
                process.stdin.close()
                await _ended(process)


async def _next(stream: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(STALL_SECONDS):
            return await stream.readline()
    except TimeoutError:
        raise StorageError(f"The backup was given up: nothing of it was taken for {STALL_SECONDS:g} s") from None
    except ValueError:
        raise StorageError("The backup was not written: the process that writes it said too much") from None


async def _send(stream: asyncio.StreamWriter, message: dict[str, object]) -> None:
    try:
        stream.write(json.dumps(message).encode("ascii") + b"\n")
        await stream.drain()
    except ConnectionError:
        pass  # it has ended; what it said last tells why


async def _ended(process: asyncio.subprocess.Process) -> None:
    """See it gone: its input has ended, so it stops by itself; a derivation of a key may take it a moment."""
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await asyncio.shield(process.wait())
    except TimeoutError:
        process.kill()
        await asyncio.shield(process.wait())
